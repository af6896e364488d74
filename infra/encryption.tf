# With a key of one's own: the service agents that encrypt and decrypt with it.

# This data source makes Google create the agent, which no resource does.
data "google_storage_project_service_account" "agent" {
  count = var.kms_key == null ? 0 : 1

  project = google_project_service.api["storage"].project
}

# On its own, before the others: the bucket waits for it, and they wait for the bucket, which tells the project's number.
resource "google_kms_crypto_key_iam_member" "storage" {
  count = var.kms_key == null ? 0 : 1

  crypto_key_id = var.kms_key
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = "serviceAccount:${data.google_storage_project_service_account.agent[0].email_address}"
}

resource "google_kms_crypto_key_iam_member" "agent" {
  for_each = var.kms_key == null ? {} : merge(
    { pubsub = "gcp-sa-pubsub" },
    var.ledger == null ? { firestore = "gcp-sa-firestore" } : {},
    local.given_credentials == null || local.own_webhook_secrets ? { secretmanager = "gcp-sa-secretmanager" } : {},
  )

  crypto_key_id = var.kms_key
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = "serviceAccount:service-${local.project_number}@${each.value}.iam.gserviceaccount.com"

  depends_on = [google_project_service.api]
}
