# The function's source: what is in the zip, where it lies, and who may build it.

locals {
  function_dir = "${path.module}/../function"

  # A list of what goes in, not of what stays out: a key file, an .env or a downloaded credentials.csv that lies about in
  # the folder can never be named here. (Excludes fail the other way: a pattern that was forgotten ships the file, and
  # one such as `**/.*` also matches the folder itself and ships nothing.)
  bundle_files = setunion(
    ["main.py", "requirements.txt"],
    [
      for file in fileset(local.function_dir, "modelarts_cleanup/**/*.py") : file
      # Simulator and commands are never deployed, and hidden folders are nobody's package.
      if !startswith(file, "modelarts_cleanup/local/") && !can(regex("(^|/)[.]|(^|/)__pycache__/", file))
    ],
  )
}

# Contents instead of a folder: archive_file then writes the entries sorted, with one fixed date and no mode of the
# machine's own, so the same tree gives the same bytes whoever applies.
data "archive_file" "bundle" {
  type             = "zip"
  output_path      = "${path.module}/build/${var.project_id}-${var.name}.zip" # one for each deployment from this folder
  output_file_mode = "0644"

  dynamic "source" {
    for_each = local.bundle_files
    content {
      filename = source.value
      content  = file("${local.function_dir}/${source.value}")
    }
  }
}

resource "google_storage_bucket" "source" {
  project                     = google_project_service.api["storage"].project
  name                        = "${var.project_id}-${var.name}-source"
  location                    = var.region
  labels                      = var.labels
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = true # it holds nothing that the repository does not

  dynamic "encryption" {
    for_each = var.kms_key[*]
    content {
      default_kms_key_name = encryption.value
    }
  }

  depends_on = [google_kms_crypto_key_iam_member.storage]
}

# Named by its hash: a change of the source is a new name and so a new deployment, and no change is none. A fixed name
# is what leaves functions running yesterday's code.
resource "google_storage_bucket_object" "bundle" {
  bucket = google_storage_bucket.source.name
  name   = "function-${data.archive_file.bundle.output_sha256}.zip"
  source = data.archive_file.bundle.output_path

  lifecycle {
    create_before_destroy = true # the function points at the old one until it has been updated
  }
}

resource "google_artifact_registry_repository" "images" {
  project       = google_project_service.api["artifactregistry"].project
  location      = var.region
  repository_id = var.name
  format        = "DOCKER"
  description   = "Images of ${var.name}, built from its source."
  labels        = var.labels

  cleanup_policies {
    id     = "delete-old"
    action = "DELETE"
    condition {
      older_than = "2592000s"
    }
  }
  cleanup_policies {
    id     = "keep-the-last-five"
    action = "KEEP"
    most_recent_versions {
      keep_count = 5
    }
  }
}

resource "google_service_account" "build" {
  project      = google_project_service.api["iam"].project
  account_id   = "${var.name}-build"
  display_name = "${var.name}: builds the function"
}

resource "google_storage_bucket_iam_member" "build_reads_source" {
  bucket = google_storage_bucket.source.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.build.member
}

# Cloud Functions copies the source into a bucket of its own and lets the build read it from there. The bucket comes into
# being with the region's first function, so the right cannot stand on it: the condition narrows it to that bucket.
resource "google_project_iam_member" "build_reads_copied_source" {
  project = google_project_service.api["cloudresourcemanager"].project
  role    = "roles/storage.objectViewer"
  member  = google_service_account.build.member

  condition {
    title      = "only the functions' source bucket"
    expression = "resource.name.startsWith(\"projects/_/buckets/gcf-v2-sources-${local.project_number}-${var.region}\")"
  }
}

resource "google_artifact_registry_repository_iam_member" "build_writes_images" {
  project    = google_artifact_registry_repository.images.project
  location   = google_artifact_registry_repository.images.location
  repository = google_artifact_registry_repository.images.name
  role       = "roles/artifactregistry.writer"
  member     = google_service_account.build.member
}

# Log entries can be written to a project or not at all: there is no narrower place to grant this.
resource "google_project_iam_member" "build_writes_logs" {
  project = google_project_service.api["cloudresourcemanager"].project
  role    = "roles/logging.logWriter"
  member  = google_service_account.build.member
}
