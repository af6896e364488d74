# What twenty deliveries could not save.

resource "google_pubsub_topic" "dead_letters" {
  project      = google_project_service.api["pubsub"].project
  name         = "${var.name}-dead-letters"
  labels       = var.labels
  kms_key_name = var.kms_key

  depends_on = [google_kms_crypto_key_iam_member.agent]
}

# A topic keeps nothing: without this subscription a dead letter would be gone the moment it came.
resource "google_pubsub_subscription" "dead_letters" {
  project = google_pubsub_topic.dead_letters.project
  name    = "${var.name}-dead-letters"
  topic   = google_pubsub_topic.dead_letters.id
  labels  = var.labels

  ack_deadline_seconds       = 600 # time for a person or a replay to look at one
  message_retention_duration = "604800s"

  expiration_policy {
    ttl = ""
  }
}

# Pub/Sub moves a dead letter itself: it publishes to the one side and acknowledges on the other. Without both grants the
# policy is accepted and does nothing.
resource "google_pubsub_topic_iam_member" "dead_letters_arrive" {
  project = google_pubsub_topic.dead_letters.project
  topic   = google_pubsub_topic.dead_letters.name
  role    = "roles/pubsub.publisher"
  member  = local.pubsub_agent
}

resource "google_pubsub_subscription_iam_member" "dead_letters_leave" {
  project      = google_pubsub_subscription.push.project
  subscription = google_pubsub_subscription.push.name
  role         = "roles/pubsub.subscriber"
  member       = local.pubsub_agent
}
