# Values that must be refused before anything is made. The messages are looked at in the repository's own tests.

mock_provider "google" {}
mock_provider "archive" {}

variables {
  project_id       = "example-project"
  region           = "europe-west1"
  modelarts_region = "cn-southwest-2"
  allowed_projects = ["0123456789abcdef0123456789abcdef"]
  allowed_names    = ["ci-*", "test-*"]
}

run "nothing_listed_passwords_and_a_key_elsewhere" {
  command = plan

  variables {
    allowed_projects = []
    allowed_names    = []
    completion_sink  = "https://user:password@example.com/"
    expiry_sink      = "https://user@example.com/"
    kms_key          = "projects/p/locations/us-east1/keyRings/r/cryptoKeys/k"
  }

  expect_failures = [
    var.allowed_projects,
    var.allowed_names,
    var.completion_sink,
    var.expiry_sink,
    var.kms_key,
  ]
}

run "secrets_where_references_belong" {
  command = plan

  variables {
    credentials     = "{\"access_key\": \"AK\", \"secret_key\": \"SK\"}"
    webhook_secrets = "whsec_a2V5a2V5a2V5a2V5"
  }

  expect_failures = [google_cloudfunctions2_function.cleanup]
}

run "google_and_huawei_mixed_up" {
  command = plan

  variables {
    project_id         = "0123456789abcdef0123456789abcdef"
    region             = "cn-southwest-2"
    modelarts_region   = "europe-west1"
    modelarts_endpoint = "https://modelarts.example.com"
    allowed_projects   = ["all projects", "*"]
    allowed_names      = ["ci-*,test-*"]
  }

  expect_failures = [
    var.project_id,
    var.region,
    var.modelarts_region,
    var.modelarts_endpoint,
    var.allowed_projects,
    var.allowed_names,
  ]
}

run "what_google_refuses_and_what_matches_nothing" {
  command = plan

  variables {
    name               = "google-cleanup"
    allowed_names      = ["[ci-*"]
    protected_clusters = ["!golden"]
    ledger             = "firestore://projects/a.b/databases/ledger"
  }

  expect_failures = [
    var.name,
    var.allowed_names,
    var.protected_clusters,
    var.ledger,
  ]
}
