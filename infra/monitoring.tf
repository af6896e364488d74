# What the log lines and the subscriptions tell: metrics by outcome, and the alerts.

locals {
  cleanup_log = join(" AND ", [
    "resource.type = \"cloud_run_revision\"",
    "resource.labels.service_name = \"${google_cloudfunctions2_function.cleanup.name}\"",
  ])
}

resource "google_logging_metric" "outcomes" {
  project     = google_project_service.api["logging"].project
  name        = "${var.name}/outcomes"
  description = "Requests by outcome and reason; outcome `retry` will be delivered again."
  filter      = "${local.cleanup_log} AND jsonPayload.outcome:*"

  label_extractors = {
    outcome = "EXTRACT(jsonPayload.outcome)"
    reason  = "EXTRACT(jsonPayload.reason)"
  }

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"

    labels {
      key         = "outcome"
      value_type  = "STRING"
      description = "How it ended."
    }
    labels {
      key         = "reason"
      value_type  = "STRING"
      description = "Why."
    }
  }
}

resource "google_logging_metric" "duration" {
  project         = google_project_service.api["logging"].project
  name            = "${var.name}/duration"
  description     = "How long a request took, by outcome."
  filter          = "${local.cleanup_log} AND jsonPayload.outcome:* AND jsonPayload.duration_ms >= 0"
  value_extractor = "EXTRACT(jsonPayload.duration_ms)"

  label_extractors = {
    outcome = "EXTRACT(jsonPayload.outcome)"
  }

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "DISTRIBUTION"
    unit        = "ms"

    labels {
      key         = "outcome"
      value_type  = "STRING"
      description = "How it ended."
    }
  }

  bucket_options {
    exponential_buckets {
      num_finite_buckets = 20
      growth_factor      = 2
      scale              = 1
    }
  }
}

locals {
  # Alerts on a measure of a subscription.
  subscription_alerts = {
    dead_letters = {
      title        = "dead letters"
      severity     = "ERROR"
      subscription = google_pubsub_subscription.dead_letters.name
      metric       = "num_undelivered_messages"
      where        = ""
      above        = 0
      unit         = "messages"
      aligner      = "ALIGN_MAX"
      reducer      = "REDUCE_MAX"
      document     = <<-EOT
        Twenty deliveries of an expiry ended in a retry, or never reached the function. Its cluster still stands.

        1. See why: the log of `${var.name}` names the `reason` of each delivery; no line at all means that the push was refused.
        2. Mend the cause.
        3. Send them again: `modelarts-cleanup replay ${google_pubsub_subscription.dead_letters.id}`. The ledger sees to it that nothing is done twice.

        They are kept for seven days.
      EOT
    }
    waiting = {
      title        = "an expiry has been waiting for 15 minutes"
      severity     = "WARNING"
      subscription = google_pubsub_subscription.push.name
      metric       = "oldest_unacked_message_age"
      where        = ""
      above        = 900
      unit         = "seconds"
      aligner      = "ALIGN_MAX"
      reducer      = "REDUCE_MAX"
      document     = <<-EOT
        The oldest expiry has been delivered again and again for more than 15 minutes. A cluster that is slow to go (`still_deleting`) does this for up to an hour, and ends by itself.

        1. See why: the log of `${var.name}` names the `reason` of each delivery.
        2. `throttled`, `modelarts_unavailable`: wait. `credentials_…`, `deletion_limit`: an alert of their own says what to do. `misconfigured…`: the log line names the setting.

        After twenty deliveries it becomes a dead letter.
      EOT
    }
    push_refused = {
      title        = "pushes are refused"
      severity     = "ERROR"
      subscription = google_pubsub_subscription.push.name
      metric       = "push_request_count"
      # An ordinary retry is a 503, which is remote_server_5xx and must not alert.
      where    = " AND metric.labels.response_class = one_of(\"remote_server_4xx\", \"invalid\", \"unreachable\")"
      above    = 0
      unit     = "pushes"
      aligner  = "ALIGN_DELTA"
      reducer  = "REDUCE_SUM"
      document = <<-EOT
        Pub/Sub calls the function and is turned away before our code runs: 401 or 403 (the identity `${google_service_account.push.email}` lost `roles/run.invoker`, or Pub/Sub's service agent lost `roles/iam.serviceAccountTokenCreator` on it), 404 (ingress is no longer internal, or the function is gone), 429 (no instance free: raise `max_instances`).

        `terraform apply` puts the grants and the ingress back. In the first minutes after the very first apply this can happen once, until the grants have spread.
      EOT
    }
  }

  # Alerts on a log line. They match the line itself and not a metric made from it: a policy on a metric that was created
  # a moment ago is refused, and the first apply would fail.
  log_alerts = {
    attention = {
      title    = "an expiry failed or was rejected"
      severity = "ERROR"
      filter   = "jsonPayload.outcome = (\"failed\" OR \"rejected\")"
      document = <<-EOT
        `failed`: ModelArts will not delete the cluster (`refused`, with its code), or it is still there an hour after the DELETE (`stuck`). `rejected`: the event could not be understood; the completion event names the field.

        1. Read it: `gcloud pubsub subscriptions pull ${google_pubsub_subscription.attention.id} --limit=10` (kept for seven days).
        2. `refused`, `stuck`: look at the cluster in the ModelArts console. `rejected`: tell the sender.
        3. When it is mended, send a new event and acknowledge the old one.
      EOT
    }
    credentials = {
      title    = "ModelArts credentials are refused or unreadable"
      severity = "ERROR"
      filter   = "jsonPayload.reason = (\"credentials_refused\" OR \"credentials_unavailable\")"
      document = <<-EOT
        Nothing is deleted and nothing is lost: expiries are delivered again, and become dead letters after twenty deliveries.

        `credentials_unavailable`: the secret has no enabled version, or it cannot be read as credentials. `credentials_refused`: the access key was removed, disabled, or lacks the rights for ModelArts.

        Put in a key that works, as a new version: `gcloud secrets versions add SECRET --data-file=credentials.csv`. It is read within five minutes, without a deployment.
      EOT
    }
    deletion_limit = {
      title    = "the limit of deletions was hit"
      severity = "WARNING"
      filter   = "jsonPayload.reason = \"deletion_limit\""
      document = <<-EOT
        More than ${var.deletions_per_hour} clusters of one project were to be deleted within an hour. The rest wait and are delivered again.

        1. Is that many right? If not, stop everything with one command: `gcloud pubsub subscriptions modify-push-config ${google_pubsub_subscription.push.id} --push-endpoint=""`. Expiries then wait, for seven days.
        2. If it is, wait, or raise `deletions_per_hour` and apply.
      EOT
    }
  }
}

resource "google_monitoring_alert_policy" "subscription" {
  for_each = local.subscription_alerts

  project               = google_project_service.api["monitoring"].project
  display_name          = "${var.name}: ${each.value.title}"
  combiner              = "OR"
  severity              = each.value.severity
  notification_channels = var.alert_channels
  user_labels           = var.labels

  conditions {
    display_name = "${each.value.title} (more than ${each.value.above} ${each.value.unit})"

    condition_threshold {
      filter = join("", [
        "resource.type = \"pubsub_subscription\"",
        " AND resource.labels.subscription_id = \"${each.value.subscription}\"",
        " AND metric.type = \"pubsub.googleapis.com/subscription/${each.value.metric}\"",
        each.value.where,
      ])
      comparison      = "COMPARISON_GT"
      threshold_value = each.value.above
      duration        = "0s"

      aggregations {
        alignment_period     = "300s"
        per_series_aligner   = each.value.aligner
        cross_series_reducer = each.value.reducer
      }
      trigger {
        count = 1
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = each.value.document
  }
}

resource "google_monitoring_alert_policy" "log" {
  for_each = local.log_alerts

  project               = google_project_service.api["monitoring"].project
  display_name          = "${var.name}: ${each.value.title}"
  combiner              = "OR"
  severity              = each.value.severity
  notification_channels = var.alert_channels
  user_labels           = var.labels

  conditions {
    display_name = each.value.title

    condition_matched_log {
      filter = "${local.cleanup_log} AND ${each.value.filter}"
      label_extractors = {
        cluster_id = "EXTRACT(jsonPayload.cluster_id)"
        reason     = "EXTRACT(jsonPayload.reason)"
      }
    }
  }

  # An alert on a log line is refused without a limit.
  alert_strategy {
    auto_close = "86400s"
    notification_rate_limit {
      period = "3600s"
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = each.value.document
  }
}
