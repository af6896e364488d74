terraform {
  # 1.9 is the first release in which one variable's validation may look at another variable.
  required_version = ">= 1.9"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 6.50, < 9.0"
    }
    archive = {
      source  = "hashicorp/archive"
      version = ">= 2.4, < 3.0"
    }
  }
}

# There is no provider block: as a root module the provider takes its credentials from the environment, as a child
# module it is the caller's, and every resource below names its project itself.
