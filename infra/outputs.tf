output "topics" {
  description = "Ids of the topics: where expiries are published, and where completions and dead letters arrive."
  value = {
    expiries     = google_pubsub_topic.expiries.id
    completions  = google_pubsub_topic.completions.id
    dead_letters = google_pubsub_topic.dead_letters.id
  }
}

output "subscriptions" {
  description = "Ids of the subscriptions: the push to the function, the completions that a person must look at, and the dead letters."
  value = {
    push         = google_pubsub_subscription.push.id
    attention    = google_pubsub_subscription.attention.id
    dead_letters = google_pubsub_subscription.dead_letters.id
  }
}

output "functions" {
  description = "Names of the functions; webhook is null where it is off."
  value = {
    cleanup = google_cloudfunctions2_function.cleanup.name
    webhook = one(google_cloudfunctions2_function.webhook[*].name)
  }
}

output "cleanup_url" {
  description = "Address of the function, which only Pub/Sub of this project can reach."
  value       = google_cloudfunctions2_function.cleanup.service_config[0].uri
}

output "webhook_url" {
  description = "Address to post signed webhooks to; null where the webhook is off."
  value       = one([for function in google_cloudfunctions2_function.webhook : function.service_config[0].uri])
}

output "identities" {
  description = "E-mail addresses of the service accounts; webhook is null where it is off."
  value = {
    build   = google_service_account.build.email
    run     = google_service_account.run.email
    push    = google_service_account.push.email
    webhook = one(google_service_account.webhook[*].email)
  }
}

output "secrets" {
  description = "Ids of the empty secrets that wait for a version; null where a setting names a secret elsewhere."
  value = {
    credentials     = one(google_secret_manager_secret.credentials[*].id)
    webhook_secrets = one(google_secret_manager_secret.webhook[*].id)
  }
}

output "send_test_expiry" {
  description = "Sends the expiry of a cluster that does not exist, another one each time: the answer `already_gone` proves the way and the credentials."
  # One and the same expiry would be asked about once and never again: its end stands in the ledger. So the shell that
  # runs this puts the time of day into the cluster's id.
  value = join(" ", [
    "gcloud pubsub topics publish ${google_pubsub_topic.expiries.id}",
    "--attribute=content-type=application/json",
    replace("--message='${jsonencode({
      cluster_id = "no-such-cluster-@"
      expires_at = "2020-01-01T00:00:00Z"
      project_id = var.allowed_projects[0]
    })}'", "@", "'\"$(date +%s)\"'"),
  ])
}

output "replay_dead_letters" {
  description = "Sends the dead letters again, once their cause is mended."
  value       = "modelarts-cleanup replay ${google_pubsub_subscription.dead_letters.id}"
}
