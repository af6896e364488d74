# Expiries come in: the topic, and the subscription that pushes its messages to the function.

resource "google_pubsub_topic" "expiries" {
  project      = google_project_service.api["pubsub"].project
  name         = "${var.name}-expiries"
  labels       = var.labels
  kms_key_name = var.kms_key

  depends_on = [google_kms_crypto_key_iam_member.agent]
}

resource "google_service_account" "push" {
  project      = google_project_service.api["iam"].project
  account_id   = "${var.name}-push"
  display_name = "${var.name}: calls the function for Pub/Sub"
}

# The service carries the function's name. (`service_config[0].service` would say so too, but not in every release of the
# provider.)
resource "google_cloud_run_v2_service_iam_member" "push_invokes" {
  project  = google_cloudfunctions2_function.cleanup.project
  location = google_cloudfunctions2_function.cleanup.location
  name     = google_cloudfunctions2_function.cleanup.name
  role     = "roles/run.invoker"
  member   = google_service_account.push.member
}

# Pub/Sub signs the token of each push as this account. The topic comes first, because a project that never used Pub/Sub
# has no service agent to grant anything to.
resource "google_service_account_iam_member" "pubsub_signs_as_push" {
  service_account_id = google_service_account.push.name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = local.pubsub_agent

  depends_on = [google_pubsub_topic.expiries]
}

# An own push subscription and not an Eventarc trigger: that one's hidden subscription has an acknowledgement deadline of
# ten seconds and no dead letters, and Terraform can change neither.
resource "google_pubsub_subscription" "push" {
  project = google_pubsub_topic.expiries.project
  name    = "${var.name}-push"
  topic   = google_pubsub_topic.expiries.id
  labels  = var.labels

  ack_deadline_seconds         = 600 # the most there is, and more than the function's timeout
  message_retention_duration   = "604800s"
  enable_message_ordering      = false
  enable_exactly_once_delivery = false # pull only; the ledger makes one effect out of many deliveries

  push_config {
    push_endpoint = google_cloudfunctions2_function.cleanup.service_config[0].uri

    oidc_token {
      service_account_email = google_service_account.push.email
      audience              = google_cloudfunctions2_function.cleanup.service_config[0].uri
    }

    # Attributes arrive as headers and the data as the body, so a message with `ce-` attributes is the CloudEvent itself.
    no_wrapper {
      write_metadata = true
    }
  }

  retry_policy {
    minimum_backoff = "10s"
    maximum_backoff = "600s"
  }

  dead_letter_policy {
    dead_letter_topic     = google_pubsub_topic.dead_letters.id
    max_delivery_attempts = 20
  }

  expiration_policy {
    ttl = "" # never: the default removes a subscription that was idle for 31 days
  }

  # Everything that a delivery needs comes before the first delivery.
  depends_on = [
    google_cloud_run_v2_service_iam_member.push_invokes,
    google_project_iam_member.run_uses_ledger,
    google_pubsub_subscription.dead_letters,
    google_pubsub_topic_iam_member.dead_letters_arrive,
    google_pubsub_topic_iam_member.run_publishes_completions,
    google_secret_manager_secret_iam_member.run_reads_credentials,
    google_service_account_iam_member.pubsub_signs_as_push,
  ]
}
