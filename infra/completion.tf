# Completion events go out, and those that a person must look at are kept.

locals {
  completion_sink = coalesce(
    var.completion_sink,
    "pubsub://projects/${google_pubsub_topic.completions.project}/topics/${google_pubsub_topic.completions.name}",
  )
}

resource "google_pubsub_topic" "completions" {
  project      = google_project_service.api["pubsub"].project
  name         = "${var.name}-completions"
  labels       = var.labels
  kms_key_name = var.kms_key

  depends_on = [google_kms_crypto_key_iam_member.agent]
}

resource "google_pubsub_topic_iam_member" "run_publishes_completions" {
  count = var.completion_sink == null ? 1 : 0

  project = google_pubsub_topic.completions.project
  topic   = google_pubsub_topic.completions.name
  role    = "roles/pubsub.publisher"
  member  = google_service_account.run.member
}

resource "google_pubsub_subscription" "attention" {
  project = google_pubsub_topic.completions.project
  name    = "${var.name}-attention"
  topic   = google_pubsub_topic.completions.id
  labels  = var.labels
  filter  = "attributes.ce-outcome = \"failed\" OR attributes.ce-outcome = \"rejected\""

  ack_deadline_seconds       = 600
  message_retention_duration = "604800s"

  expiration_policy {
    ttl = ""
  }
}
