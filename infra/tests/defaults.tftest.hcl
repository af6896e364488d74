# What the module does with the five variables that must be given, and with everything else left alone.
# The providers are mocked: `terraform init && terraform test` needs no Google project and changes nothing.

mock_provider "google" {}
mock_provider "archive" {}

variables {
  project_id       = "example-project"
  region           = "europe-west1"
  modelarts_region = "cn-southwest-2"
  allowed_projects = ["0123456789abcdef0123456789abcdef"]
  allowed_names    = ["ci-*", "test-*"]
}

run "safe_by_default" {
  command = plan

  assert {
    condition     = local.settings.DRY_RUN == "true"
    error_message = "the dry run must be on until it is switched off"
  }
  assert {
    condition     = local.settings.DELETIONS_PER_HOUR == "10" && local.settings.REQUIRE_EMPTY == "true"
    error_message = "the limit must be on, and clusters with members kept"
  }
  assert {
    condition     = length(google_cloudfunctions2_function.webhook) == 0 && length(google_service_account.webhook) == 0
    error_message = "the webhook must be off, and leave nothing behind"
  }
  assert {
    condition     = length(setintersection(keys(local.settings), ["MODELARTS_ENDPOINT", "PROTECTED_CLUSTERS"])) == 0
    error_message = "what is not given is the code's to know"
  }
  assert {
    condition     = google_cloudfunctions2_function.cleanup.service_config[0].ingress_settings == "ALLOW_INTERNAL_ONLY"
    error_message = "only Pub/Sub of this project may reach the function"
  }
}

run "lists_are_joined" {
  command = plan

  variables {
    allowed_projects   = ["a", "b"]
    protected_clusters = ["keep-*", "golden"]
  }

  assert {
    condition     = local.settings.ALLOWED_PROJECTS == "a,b" && local.settings.PROTECTED_CLUSTERS == "keep-*,golden"
    error_message = "a list becomes one setting, separated by commas"
  }
}

run "what_is_elsewhere_gets_no_grant" {
  command = plan

  variables {
    credentials     = "secretmanager://projects/vault/secrets/huawei/versions/3"
    completion_sink = "pubsub://projects/elsewhere/topics/completions"
    ledger          = "firestore://projects/elsewhere/databases/(default)"
    expiry_sink     = "pubsub://projects/elsewhere/topics/expiries"
    webhook_secrets = "secretmanager://projects/vault/secrets/webhook"
    webhook_enabled = true
  }

  assert {
    condition     = local.settings.CREDENTIALS == "secretmanager://projects/vault/secrets/huawei/versions/3"
    error_message = "a reference is passed on as it is"
  }
  assert {
    condition = length(concat(
      google_secret_manager_secret.credentials,
      google_secret_manager_secret.webhook,
      google_firestore_database.ledger,
    )) == 0
    error_message = "nothing is made that nobody will use"
  }
  assert {
    condition = length(concat(
      google_secret_manager_secret_iam_member.run_reads_credentials,
      google_secret_manager_secret_iam_member.webhook_reads_its_secrets,
      google_pubsub_topic_iam_member.run_publishes_completions,
      google_pubsub_topic_iam_member.webhook_publishes_expiries,
      google_project_iam_member.run_uses_ledger,
    )) == 0
    error_message = "what the module does not own, it grants nothing on"
  }
}
