# The least that works: dry run on, webhook off, the limit on.
module "modelarts_cleanup" {
  source = "../.."

  project_id       = "example-project"
  region           = "europe-west1"
  modelarts_region = "cn-southwest-2"
  allowed_projects = ["0123456789abcdef0123456789abcdef"]
  allowed_names    = ["ci-*", "test-*"]
}

output "modelarts_cleanup" {
  description = "Everything that the module tells."
  value       = module.modelarts_cleanup
}
