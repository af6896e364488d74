# One page that answers: how many deleted, skipped, failed; why; how long; what waits.

locals {
  outcomes_metric = "metric.type = \"logging.googleapis.com/user/${google_logging_metric.outcomes.name}\" AND resource.type = \"cloud_run_revision\""
  duration_metric = "metric.type = \"logging.googleapis.com/user/${google_logging_metric.duration.name}\" AND resource.type = \"cloud_run_revision\""

  # How many, and what waits: a number each. The colour changes where a person is needed.
  numbers = concat(
    [
      for outcome, colour in { deleted = null, already_gone = null, skipped = null, failed = "RED", rejected = "RED", retry = "YELLOW" } : {
        title                          = outcome
        filter                         = "${local.outcomes_metric} AND metric.labels.outcome = \"${outcome}\""
        aligner                        = "ALIGN_SUM"
        colour                         = colour
        above                          = 0
      }
    ],
    [
      for title, wait in {
        "waiting"           = { subscription = google_pubsub_subscription.push.name, metric = "num_undelivered_messages", above = 100 }
        "oldest, seconds"   = { subscription = google_pubsub_subscription.push.name, metric = "oldest_unacked_message_age", above = 900 }
        "dead letters"      = { subscription = google_pubsub_subscription.dead_letters.name, metric = "num_undelivered_messages", above = 0 }
        "wait for a person" = { subscription = google_pubsub_subscription.attention.name, metric = "num_undelivered_messages", above = 0 }
        } : {
        title   = title
        filter  = "metric.type = \"pubsub.googleapis.com/subscription/${wait.metric}\" AND resource.type = \"pubsub_subscription\" AND resource.labels.subscription_id = \"${wait.subscription}\""
        aligner = "ALIGN_MAX"
        colour  = "RED"
        above   = wait.above
      }
    ],
  )

  charts = [
    { title = "Outcomes", filter = local.outcomes_metric, by = ["metric.label.outcome"], aligner = "ALIGN_SUM", reducer = "REDUCE_SUM", plot = "STACKED_BAR" },
    { title = "Why (skipped, failed, retry)", filter = "${local.outcomes_metric} AND metric.labels.reason != \"\"", by = ["metric.label.outcome", "metric.label.reason"], aligner = "ALIGN_SUM", reducer = "REDUCE_SUM", plot = "STACKED_BAR" },
    { title = "How long, ms (95th percentile)", filter = local.duration_metric, by = ["metric.label.outcome"], aligner = "ALIGN_DELTA", reducer = "REDUCE_PERCENTILE_95", plot = "LINE" },
    { title = "How Pub/Sub was answered", filter = "metric.type = \"pubsub.googleapis.com/subscription/push_request_count\" AND resource.type = \"pubsub_subscription\" AND resource.labels.subscription_id = \"${google_pubsub_subscription.push.name}\"", by = ["metric.label.response_class"], aligner = "ALIGN_DELTA", reducer = "REDUCE_SUM", plot = "STACKED_BAR" },
  ]

  # Five numbers a row over two charts a row over the log, on a grid 60 wide.
  tiles = concat(
    [
      for i, number in local.numbers : {
        xPos   = i % 5 * 12
        yPos   = floor(i / 5) * 8
        width  = 12
        height = 8
        widget = {
          title = number.title
          scorecard = merge(
            {
              timeSeriesQuery = {
                timeSeriesFilter = {
                  filter = number.filter
                  aggregation = {
                    alignmentPeriod    = number.aligner == "ALIGN_SUM" ? "86400s" : "300s"
                    perSeriesAligner   = number.aligner
                    crossSeriesReducer = number.aligner == "ALIGN_SUM" ? "REDUCE_SUM" : "REDUCE_MAX"
                  }
                }
              }
            },
            number.colour == null ? {} : {
              thresholds = [{ color = number.colour, direction = "ABOVE", value = number.above }]
            },
          )
        }
      }
    ],
    [
      for i, chart in local.charts : {
        xPos   = i % 2 * 30
        yPos   = 16 + floor(i / 2) * 16
        width  = 30
        height = 16
        widget = {
          title = chart.title
          xyChart = {
            dataSets = [{
              plotType   = chart.plot
              targetAxis = "Y1"
              timeSeriesQuery = {
                timeSeriesFilter = {
                  filter = chart.filter
                  aggregation = {
                    alignmentPeriod    = "300s"
                    perSeriesAligner   = chart.aligner
                    crossSeriesReducer = chart.reducer
                    groupByFields      = chart.by
                  }
                }
              }
            }]
          }
        }
      }
    ],
    [{
      xPos   = 0
      yPos   = 48
      width  = 60
      height = 16
      widget = {
        title = "Log"
        logsPanel = {
          filter        = "${local.cleanup_log} AND jsonPayload.outcome:*"
          resourceNames = ["projects/${var.project_id}"]
        }
      }
    }],
  )
}

resource "google_monitoring_dashboard" "cleanup" {
  project = google_project_service.api["monitoring"].project
  dashboard_json = jsonencode({
    displayName  = var.name
    mosaicLayout = { columns = 60, tiles = local.tiles }
  })
}
