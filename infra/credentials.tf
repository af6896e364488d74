# The secret with the ModelArts credentials: a container. Its value is put in by hand and never passes through Terraform,
# whose state would keep it.

locals {
  # The variable is sensitive so that a secret pasted by mistake is not shown by the error about it (see variables.tf).
  # What is used is a reference and no secret: the function, which alone gets it, has checked that.
  given_credentials = nonsensitive(var.credentials)

  # The newest version unless one is pinned. Elsewhere in this module what runs is pinned by its hash; here following
  # `latest` is the point: the function reads the secret again after five minutes at most and at once after a refusal,
  # so a new version is a rotation without a deployment. (Google's advice to pin is about variables that are filled when
  # an instance starts.) A version destroyed by mistake means `credentials_unavailable`, an alert, and a redelivery.
  own_credentials_version = var.credentials_version == "latest" ? "" : "/versions/${var.credentials_version}"

  credentials = local.given_credentials != null ? local.given_credentials : join("", [
    "secretmanager://projects/${var.project_id}/secrets/${one(google_secret_manager_secret.credentials[*].secret_id)}",
    local.own_credentials_version,
  ])
}

resource "google_secret_manager_secret" "credentials" {
  count = local.given_credentials == null ? 1 : 0

  project   = google_project_service.api["secretmanager"].project
  secret_id = "${var.name}-credentials"
  labels    = var.labels

  replication {
    # One replica, beside the function. Automatic replication would want a key of its own in every place.
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

resource "google_secret_manager_secret_iam_member" "run_reads_credentials" {
  count = local.given_credentials == null ? 1 : 0

  project   = google_secret_manager_secret.credentials[0].project
  secret_id = google_secret_manager_secret.credentials[0].secret_id
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.run.member
}
