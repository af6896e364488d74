# One page that answers: how many deleted, skipped, failed; why; how long; what waits.

locals {
  outcomes_metric = "metric.type = \"logging.googleapis.com/user/${google_logging_metric.outcomes.name}\" AND resource.type = \"cloud_run_revision\""
  duration_metric = "metric.type = \"logging.googleapis.com/user/${google_logging_metric.duration.name}\" AND resource.type = \"cloud_run_revision\""

  # How many, and what waits: a number each. The colour changes where a person is needed.
  outcomes = [
    for outcome in ["deleted", "already_gone", "skipped", "retry", "failed", "rejected"] : {
      title   = outcome
      filter  = "${local.outcomes_metric} AND metric.labels.outcome = \"${outcome}\""
      over    = "86400s"
      aligner = "ALIGN_SUM"
      reducer = "REDUCE_SUM"
      colour  = lookup({ retry = "YELLOW", failed = "RED", rejected = "RED" }, outcome, null)
      above   = 0
    }
  ]
  waits = [
    for wait in [
      { title = "waiting", subscription = google_pubsub_subscription.push.name, metric = "num_undelivered_messages", above = 100 },
      { title = "oldest, seconds", subscription = google_pubsub_subscription.push.name, metric = "oldest_unacked_message_age", above = 900 },
      { title = "dead letters", subscription = google_pubsub_subscription.dead_letters.name, metric = "num_undelivered_messages", above = 0 },
      { title = "wait for a person", subscription = google_pubsub_subscription.attention.name, metric = "num_undelivered_messages", above = 0 },
      ] : {
      title   = wait.title
      filter  = "metric.type = \"pubsub.googleapis.com/subscription/${wait.metric}\" AND resource.type = \"pubsub_subscription\" AND resource.labels.subscription_id = \"${wait.subscription}\""
      over    = "300s"
      aligner = "ALIGN_MAX"
      reducer = "REDUCE_MAX"
      colour  = "RED"
      above   = wait.above
    }
  ]

  charts = [
    { title = "Outcomes", filter = local.outcomes_metric, by = ["metric.label.outcome"], aligner = "ALIGN_SUM", reducer = "REDUCE_SUM", plot = "STACKED_BAR" },
    { title = "Why (skipped, failed, retry)", filter = "${local.outcomes_metric} AND metric.labels.outcome = one_of(\"skipped\", \"failed\", \"retry\")", by = ["metric.label.outcome", "metric.label.reason"], aligner = "ALIGN_SUM", reducer = "REDUCE_SUM", plot = "STACKED_BAR" },
    { title = "How long, ms (95th percentile)", filter = local.duration_metric, by = ["metric.label.outcome"], aligner = "ALIGN_DELTA", reducer = "REDUCE_PERCENTILE_95", plot = "LINE" },
    { title = "How Pub/Sub was answered", filter = "metric.type = \"pubsub.googleapis.com/subscription/push_request_count\" AND resource.type = \"pubsub_subscription\" AND resource.labels.subscription_id = \"${google_pubsub_subscription.push.name}\"", by = ["metric.label.response_class"], aligner = "ALIGN_DELTA", reducer = "REDUCE_SUM", plot = "STACKED_BAR" },
  ]

  # A row of outcomes over a row of what waits over two charts a row over the log, on a grid 12 wide, which is as wide as
  # every version of the API admits.
  tiles = concat(
    [
      for number in concat(
        [for i, outcome in local.outcomes : merge(outcome, { xPos = i * 2, yPos = 0, width = 2 })],
        [for i, wait in local.waits : merge(wait, { xPos = i * 3, yPos = 3, width = 3 })],
        ) : {
        xPos   = number.xPos
        yPos   = number.yPos
        width  = number.width
        height = 3
        widget = {
          title = number.title
          scorecard = merge(
            {
              timeSeriesQuery = {
                timeSeriesFilter = {
                  filter = number.filter
                  aggregation = {
                    alignmentPeriod    = number.over
                    perSeriesAligner   = number.aligner
                    crossSeriesReducer = number.reducer
                  }
                }
              }
            },
            number.colour == null ? {} : {
              thresholds = [merge({ color = number.colour, direction = "ABOVE" }, number.above == 0 ? {} : { value = number.above })]
            },
          )
        }
      }
    ],
    [
      for i, chart in local.charts : {
        xPos   = i % 2 * 6
        yPos   = 6 + floor(i / 2) * 4
        width  = 6
        height = 4
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
      yPos   = 14
      width  = 12
      height = 4
      widget = {
        title     = "Log"
        logsPanel = { filter = "${local.cleanup_log} AND jsonPayload.outcome:*" }
      }
    }],
  )
}

resource "google_monitoring_dashboard" "cleanup" {
  project = google_project_service.api["monitoring"].project
  dashboard_json = jsonencode({
    displayName = var.name
    mosaicLayout = {
      columns = 12
      # The API gives a dashboard back without its zeros, which older providers take for a change, at every plan.
      tiles = [for tile in local.tiles : { for key, value in tile : key => value if value != 0 }]
    }
  })
}
