# Everything that can be set: the webhook, a key of one's own, a fixed address, alerts, and the dry run off.
module "modelarts_cleanup" {
  source = "../.."

  project_id = "example-project"
  region     = "europe-west1"
  name       = "cluster-cleanup"
  labels     = { team = "platform", cost-centre = "4711" }

  modelarts_region    = "cn-southwest-2"
  modelarts_endpoint  = "https://modelarts.cn-southwest-2.myhuaweicloud.com"
  allowed_projects    = ["0123456789abcdef0123456789abcdef"]
  allowed_names       = ["ci-*", "test-*"]
  protected_clusters  = ["test-golden", "*-keep"]
  dry_run             = false
  deletions_per_hour  = 5
  require_empty       = true
  credentials_version = "2"

  webhook_enabled = true
  alert_channels  = ["projects/example-project/notificationChannels/1234567890"]
  kms_key         = "projects/example-keys/locations/europe-west1/keyRings/cleanup/cryptoKeys/cleanup"
  vpc_egress      = "projects/example-project/locations/europe-west1/connectors/cleanup"
  min_instances   = 1
  max_instances   = 3
}

output "modelarts_cleanup" {
  description = "Everything that the module tells."
  value       = module.modelarts_cleanup
}
