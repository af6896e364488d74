# The ledger: a database that holds nothing else, so that its right, its life and its deletion are its own.

locals {
  ledger = var.ledger != null ? var.ledger : (
    "firestore://projects/${var.project_id}/databases/${one(google_firestore_database.ledger[*].name)}"
  )
}

resource "google_firestore_database" "ledger" {
  count = var.ledger == null ? 1 : 0

  project     = google_project_service.api["firestore"].project
  name        = "${var.name}-ledger"
  location_id = var.region
  type        = "FIRESTORE_NATIVE"

  # Losing the ledger is losing what was promised: a repeated event would be done again. `terraform destroy` therefore
  # leaves the database where it is (see "remove everything" in the README).
  delete_protection_state = "DELETE_PROTECTION_ENABLED"
  deletion_policy         = "ABANDON"

  dynamic "cmek_config" {
    for_each = var.kms_key[*]
    content {
      kms_key_name = cmek_config.value
    }
  }

  depends_on = [google_kms_crypto_key_iam_member.agent]
}

# Records say themselves when they may be forgotten; Firestore then removes them within a day.
resource "google_firestore_field" "forget_at" {
  count = var.ledger == null ? 1 : 0

  project    = google_firestore_database.ledger[0].project
  database   = google_firestore_database.ledger[0].name
  collection = "ledger"
  field      = "forget_at"

  ttl_config {}

  # No index: nobody queries by it, and an index over ever later times is a hot spot.
  index_config {}
}

# The entry itself, as JSON: read by its key and never searched, so an index would be written for nobody.
resource "google_firestore_field" "entry" {
  count = var.ledger == null ? 1 : 0

  project    = google_firestore_database.ledger[0].project
  database   = google_firestore_database.ledger[0].name
  collection = "ledger"
  field      = "entry"

  index_config {}
}

# Firestore has no rights on a database, only on the project: the condition makes it the one database.
resource "google_project_iam_member" "run_uses_ledger" {
  count = var.ledger == null ? 1 : 0

  project = google_project_service.api["cloudresourcemanager"].project
  role    = "roles/datastore.user"
  member  = google_service_account.run.member

  condition {
    title      = "only the ledger of ${var.name}"
    expression = "resource.name == \"projects/${var.project_id}/databases/${google_firestore_database.ledger[0].name}\""
  }
}
