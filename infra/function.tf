# The function `cleanup` and the identity it runs as. What that identity may do stands with the thing it may do it to:
# credentials.tf, completion.tf, ledger.tf.

locals {
  # What one instance takes at a time. The server has as many threads: with fewer, requests would wait in an instance
  # that Cloud Run believes to be free.
  concurrency = 8

  # The environment of `cleanup`: every setting by its name, and nothing that is not one but for the two at the end.
  settings = merge(
    {
      MODELARTS_REGION   = var.modelarts_region
      ALLOWED_PROJECTS   = join(",", var.allowed_projects)
      ALLOWED_NAMES      = join(",", var.allowed_names)
      DRY_RUN            = tostring(var.dry_run)
      DELETIONS_PER_HOUR = tostring(var.deletions_per_hour)
      REQUIRE_EMPTY      = tostring(var.require_empty)
      CREDENTIALS        = local.credentials
      COMPLETION_SINK    = local.completion_sink
      LEDGER             = local.ledger
    },
    # Left out unless given: the default is the code's to know.
    var.modelarts_endpoint == null ? {} : { MODELARTS_ENDPOINT = var.modelarts_endpoint },
    length(var.protected_clusters) == 0 ? {} : { PROTECTED_CLUSTERS = join(",", var.protected_clusters) },
    {
      THREADS              = tostring(local.concurrency)
      GOOGLE_CLOUD_PROJECT = var.project_id # log lines name their trace with it
    },
  )
}

resource "google_service_account" "run" {
  project      = google_project_service.api["iam"].project
  account_id   = "${var.name}-run"
  display_name = "${var.name}: runs the function"
}

resource "google_cloudfunctions2_function" "cleanup" {
  project     = google_project_service.api["cloudfunctions"].project
  location    = var.region
  name        = var.name
  description = "Deletes ModelArts clusters whose time is up."
  labels      = var.labels

  build_config {
    runtime           = "python311" # the version that the tests run on
    entry_point       = "cleanup"
    service_account   = google_service_account.build.id
    docker_repository = google_artifact_registry_repository.images.id

    source {
      storage_source {
        bucket = google_storage_bucket_object.bundle.bucket
        object = google_storage_bucket_object.bundle.name
      }
    }
  }

  service_config {
    service_account_email            = google_service_account.run.email
    ingress_settings                 = "ALLOW_INTERNAL_ONLY" # Pub/Sub push from the same project counts as internal
    all_traffic_on_latest_revision   = true
    timeout_seconds                  = 540 # below the subscription's 600: an answer is never given to nobody
    available_cpu                    = "1" # less than one allows one request at a time only
    available_memory                 = "512Mi"
    max_instance_request_concurrency = local.concurrency
    min_instance_count               = var.min_instances
    max_instance_count               = var.max_instances
    environment_variables            = local.settings
    vpc_connector                    = var.vpc_egress
    vpc_connector_egress_settings    = var.vpc_egress == null ? null : "ALL_TRAFFIC" # one fixed address for Huawei's lists
  }

  lifecycle {
    precondition {
      condition     = var.credentials == null || can(regex(local.secret_place, var.credentials))
      error_message = "credentials: must say where the secret stands, secretmanager://projects/P/secrets/S[/versions/V] or file:///path, and never be the secret itself."
    }
    precondition {
      condition     = var.webhook_secrets == null || can(regex(local.secret_place, var.webhook_secrets))
      error_message = "webhook_secrets: must say where the secrets stand, secretmanager://projects/P/secrets/S[/versions/V] or file:///path, and never be a whsec_ secret itself."
    }
  }

  # The service and the build must be possible before the first build starts, and the ledger must be there before the
  # first event. Its TTL takes minutes to come into force, which is time for the fresh grants to reach the build.
  depends_on = [
    google_artifact_registry_repository_iam_member.build_writes_images,
    google_firestore_field.entry,
    google_firestore_field.forget_at,
    google_project_iam_member.build_reads_copied_source,
    google_project_iam_member.build_writes_logs,
    google_project_service.api["cloudbuild"],
    google_project_service.api["run"],
    google_storage_bucket_iam_member.build_reads_source,
  ]
}
