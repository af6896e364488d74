# The public door, when it is wanted: a function of its own, because it can be called by anyone and must therefore be able
# to do almost nothing. It never sees the ModelArts credentials.

locals {
  given_webhook_secrets = nonsensitive(var.webhook_secrets)
  own_webhook_secrets   = var.webhook_enabled && local.given_webhook_secrets == null

  expiry_sink = coalesce(
    var.expiry_sink,
    "pubsub://projects/${google_pubsub_topic.expiries.project}/topics/${google_pubsub_topic.expiries.name}",
  )
  webhook_secrets = local.given_webhook_secrets != null ? local.given_webhook_secrets : (
    "secretmanager://projects/${var.project_id}/secrets/${coalesce(one(google_secret_manager_secret.webhook[*].secret_id), "-")}"
  )
}

resource "google_service_account" "webhook" {
  count = var.webhook_enabled ? 1 : 0

  project      = google_project_service.api["iam"].project
  account_id   = "${var.name}-webhook"
  display_name = "${var.name}: runs the webhook"
}

# One or more `whsec_` secrets, one a line. A container, like the credentials.
resource "google_secret_manager_secret" "webhook" {
  count = local.own_webhook_secrets ? 1 : 0

  project   = google_project_service.api["secretmanager"].project
  secret_id = "${var.name}-webhook-secrets"
  labels    = var.labels

  replication {
    user_managed {
      replicas {
        location = var.region

        dynamic "customer_managed_encryption" {
          for_each = var.kms_key[*]
          content {
            kms_key_name = customer_managed_encryption.value
          }
        }
      }
    }
  }

  depends_on = [google_kms_crypto_key_iam_member.agent]
}

resource "google_secret_manager_secret_iam_member" "webhook_reads_its_secrets" {
  count = local.own_webhook_secrets ? 1 : 0

  project   = google_secret_manager_secret.webhook[0].project
  secret_id = google_secret_manager_secret.webhook[0].secret_id
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.webhook[0].member
}

resource "google_pubsub_topic_iam_member" "webhook_publishes_expiries" {
  count = var.webhook_enabled && var.expiry_sink == null ? 1 : 0

  project = google_pubsub_topic.expiries.project
  topic   = google_pubsub_topic.expiries.name
  role    = "roles/pubsub.publisher"
  member  = google_service_account.webhook[0].member
}

resource "google_cloudfunctions2_function" "webhook" {
  count = var.webhook_enabled ? 1 : 0

  project     = google_project_service.api["cloudfunctions"].project
  location    = var.region
  name        = "${var.name}-webhook"
  description = "Takes signed webhooks and turns them into expiry events."
  labels      = var.labels

  build_config {
    runtime           = google_cloudfunctions2_function.cleanup.build_config[0].runtime
    entry_point       = "webhook"
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
    service_account_email            = google_service_account.webhook[0].email
    ingress_settings                 = "ALLOW_ALL"
    all_traffic_on_latest_revision   = true
    timeout_seconds                  = 60
    available_cpu                    = "1"
    available_memory                 = "512Mi"
    max_instance_request_concurrency = local.concurrency
    min_instance_count               = 0
    max_instance_count               = var.max_instances # a flood costs this many instances and no more

    environment_variables = {
      EXPIRY_SINK          = local.expiry_sink
      WEBHOOK_SECRETS      = local.webhook_secrets
      THREADS              = tostring(local.concurrency)
      GOOGLE_CLOUD_PROJECT = var.project_id # as in function.tf
    }
  }

  depends_on = [google_secret_manager_secret_iam_member.webhook_reads_its_secrets]
}

# Public on purpose: the signature of each request is the check. This is the only grant to everyone in the module.
resource "google_cloud_run_v2_service_iam_member" "anyone_invokes_webhook" {
  count = var.webhook_enabled ? 1 : 0

  project  = google_cloudfunctions2_function.webhook[0].project
  location = google_cloudfunctions2_function.webhook[0].location
  name     = google_cloudfunctions2_function.webhook[0].name
  role     = "roles/run.invoker"
  member   = "allUsers"
}
