# The APIs that the module needs. They are switched on and never off again: something else in the project may have come
# to rely on them.
#
# Resources take their project from here (`google_project_service.api["pubsub"].project`) and not from the variable,
# so that on the first apply each of them waits for its API and for no other.
resource "google_project_service" "api" {
  for_each = toset([
    "artifactregistry",
    "cloudbuild",
    "cloudfunctions",
    "cloudresourcemanager",
    "firestore",
    "iam",
    "logging",
    "monitoring",
    "pubsub",
    "run",
    "secretmanager",
    "storage",
  ])

  project            = var.project_id
  service            = "${each.value}.googleapis.com"
  disable_on_destroy = false
}

locals {
  # The bucket is the one thing of ours that knows the project's number, from which Google forms the names of its
  # service agents. A `google_project` data source would need one more right to learn the same.
  project_number = google_storage_bucket.source.project_number
  pubsub_agent   = "serviceAccount:service-${local.project_number}@gcp-sa-pubsub.iam.gserviceaccount.com"
}
