# Alphabetical within each part. The first part is Google's side; every variable of the second is a setting of the
# function under the same name, in lower case.
#
# `credentials` and `webhook_secrets` are sensitive and are checked in function.tf: somebody will paste a secret there,
# and the error of a validation block shows the value, even of a sensitive variable.

variable "alert_channels" {
  description = "Names of the notification channels that alerts go to (projects/P/notificationChannels/N)."
  type        = list(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for channel in var.alert_channels : can(regex("^projects/[^/]+/notificationChannels/[^/]+$", channel))])
    error_message = "alert_channels: every item must be a channel's full name, projects/P/notificationChannels/N."
  }
}

variable "credentials_version" {
  description = "Version of the module's own credentials secret to read: a number, an alias, or `latest`, which makes a new version a rotation without a deployment."
  type        = string
  default     = "latest"
  nullable    = false

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]{1,63}$", var.credentials_version))
    error_message = "credentials_version: must be a version's number, an alias or `latest`."
  }
  validation {
    condition     = var.credentials_version == "latest" || var.credentials == null
    error_message = "credentials_version: is for the module's own secret only; where `credentials` is given, put /versions/V at its end."
  }
}

variable "kms_key" {
  description = "Key that encrypts topics, secrets, database and source (projects/P/locations/L/keyRings/R/cryptoKeys/K); null leaves that to Google. For a key that is made beside the module, put this together from the names of key ring and key: their ids are not known to a first plan."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key == null || can(regex("^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$", var.kms_key))
    error_message = "kms_key: must be a key's full name, projects/P/locations/L/keyRings/R/cryptoKeys/K, without a version."
  }
  validation {
    condition     = var.kms_key == null || try(split("/", var.kms_key)[3] == var.region, true)
    error_message = "kms_key: the key must lie in `region`; bucket, secret and database accept no other."
  }
}

variable "labels" {
  description = "Labels of everything that can carry them."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for key, value in var.labels : can(regex("^[a-z][a-z0-9_-]{0,62}$", key)) && can(regex("^[a-z0-9_-]{0,63}$", value))])
    error_message = "labels: keys and values may hold lower-case letters, digits, _ and -, 63 at most, and a key starts with a letter."
  }
}

variable "max_instances" {
  description = "How many instances of a function may run at a time."
  type        = number
  default     = 5
  nullable    = false

  validation {
    condition     = var.max_instances >= 1 && var.max_instances <= 100 && floor(var.max_instances) == var.max_instances
    error_message = "max_instances: must be a whole number from 1 to 100."
  }
}

variable "min_instances" {
  description = "How many instances of the function are kept warm; 0 costs nothing at rest."
  type        = number
  default     = 0
  nullable    = false

  validation {
    condition     = var.min_instances >= 0 && floor(var.min_instances) == var.min_instances
    error_message = "min_instances: must be a whole number, 0 or more."
  }
  validation {
    condition     = var.min_instances <= var.max_instances
    error_message = "min_instances: must not be more than max_instances."
  }
}

variable "name" {
  description = "What everything is called or starts with; another name makes a second deployment in the same project."
  type        = string
  default     = "modelarts-cleanup"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{2,20}[a-z0-9]$", var.name))
    error_message = "name: must be 4 to 22 lower-case letters, digits and hyphens, start with a letter and not end with a hyphen."
  }
  validation {
    condition     = !can(regex("goog|g00g|-webhook$", var.name))
    error_message = "name: must not contain `goog`, which Google refuses in the names of buckets and topics, nor end with `-webhook`, as another deployment's webhook does."
  }
}

variable "project_id" {
  description = "The Google project to deploy to."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project_id))
    error_message = "project_id: must be the id of a Google project (6 to 30 lower-case letters, digits and hyphens), not its name or number."
  }
}

variable "region" {
  description = "The Google region to deploy to, such as europe-west1."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]{1,2}$", var.region))
    error_message = "region: must be a Google region such as europe-west1; the ModelArts region has a variable of its own."
  }
}

variable "vpc_egress" {
  description = "Serverless VPC connector that all calls of the function leave through (projects/P/locations/L/connectors/C); null for none."
  type        = string
  default     = null

  validation {
    condition     = var.vpc_egress == null || can(regex("^projects/[^/]+/locations/[^/]+/connectors/[^/]+$", var.vpc_egress))
    error_message = "vpc_egress: must be a connector's id, projects/P/locations/L/connectors/C."
  }
}

variable "webhook_enabled" {
  description = "Whether to deploy the public function `webhook`."
  type        = bool
  default     = false
  nullable    = false
}

# ---- settings of the function ---------------------------------------------------------------------------------------

variable "allowed_names" {
  description = "Globs over the whole name of a cluster; nothing whose name fits none of them is ever deleted."
  type        = list(string)
  nullable    = false

  validation {
    condition     = length(var.allowed_names) > 0
    error_message = "allowed_names: must not be empty; nothing is allowed that is not listed."
  }
  validation {
    condition     = alltrue([for item in var.allowed_names : can(regex(local.glob, item))])
    error_message = "allowed_names: every item must be one glob over a name: letters, digits, _ - . and * ? [abc] [!abc], no comma or white space."
  }
  validation {
    condition     = alltrue([for item in var.allowed_names : try(length(replace(replace(item, "/\\[[^\\]]*\\]/", "?"), "*", "")) <= 64, false)])
    error_message = "allowed_names: no name is longer than 64 characters, so a glob that needs more matches nothing."
  }
}

variable "allowed_projects" {
  description = "Ids of the ModelArts projects; nothing in any other project is ever deleted."
  type        = list(string)
  nullable    = false

  validation {
    condition     = length(var.allowed_projects) > 0
    error_message = "allowed_projects: must not be empty; nothing is allowed that is not listed."
  }
  validation {
    condition     = alltrue([for item in var.allowed_projects : can(regex("^[A-Za-z0-9-]{1,64}$", item))])
    error_message = "allowed_projects: every item must be the id of a project (1 to 64 letters, digits and hyphens); there are no globs here."
  }
}

variable "completion_sink" {
  description = "Where completion events go (pubsub://projects/P/topics/T, https://…, file:///…); null for the module's own topic. On a topic given here the module grants nothing."
  type        = string
  default     = null

  validation {
    condition     = var.completion_sink == null || can(regex(local.sink_place, var.completion_sink))
    error_message = "completion_sink: must be pubsub://projects/P/topics/T, https://… without user and password (http:// to this machine only), or file:///path."
  }
}

variable "credentials" {
  description = "Where the ModelArts credentials stand (secretmanager://projects/P/secrets/S[/versions/V], file:///path); null for the module's own secret. Never the credentials themselves."
  type        = string
  default     = null
  sensitive   = true
}

variable "deletions_per_hour" {
  description = "How many clusters may be deleted in an hour, per ModelArts project, over all instances."
  type        = number
  default     = 10
  nullable    = false

  validation {
    condition     = var.deletions_per_hour >= 0 && var.deletions_per_hour <= 999999 && floor(var.deletions_per_hour) == var.deletions_per_hour
    error_message = "deletions_per_hour: must be a whole number from 0 to 999999."
  }
}

variable "dry_run" {
  description = "Whether to decide and report without deleting anything. On until it is switched off."
  type        = bool
  default     = true
  nullable    = false
}

variable "expiry_sink" {
  description = "Where `webhook` puts expiry events, as completion_sink; null for the module's own topic."
  type        = string
  default     = null

  validation {
    condition     = var.expiry_sink == null || can(regex(local.sink_place, var.expiry_sink))
    error_message = "expiry_sink: must be pubsub://projects/P/topics/T, https://… without user and password (http:// to this machine only), or file:///path."
  }
}

variable "ledger" {
  description = "Where the ledger is kept (firestore://projects/P/databases/D; sqlite:///path, which is gone with the instance, is for trials); null for the module's own database. On a database given here the module grants nothing."
  type        = string
  default     = null

  validation {
    condition     = var.ledger == null || can(regex(local.ledger_place, var.ledger))
    error_message = "ledger: must be firestore://projects/P/databases/D or sqlite:///path."
  }
}

variable "modelarts_endpoint" {
  description = "Address of ModelArts; null for the region's own."
  type        = string
  default     = null

  validation {
    condition     = var.modelarts_endpoint == null || can(regex("^(https://([a-z0-9-]+[.])+myhuaweicloud[.](com|cn|eu)(:443)?|http://(localhost|127[.]0[.]0[.]1|\\[::1\\])(:[0-9]+)?)/?$", var.modelarts_endpoint))
    error_message = "modelarts_endpoint: must be https:// under myhuaweicloud.com, .cn or .eu, without a path (http:// to this machine only)."
  }
}

variable "modelarts_region" {
  description = "The ModelArts region whose clusters are cleaned up, such as cn-southwest-2."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]+$", var.modelarts_region))
    error_message = "modelarts_region: must be a Huawei Cloud region such as cn-southwest-2."
  }
}

variable "protected_clusters" {
  description = "Ids or name globs of clusters that are kept, whatever an event says."
  type        = list(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for item in var.protected_clusters : can(regex(local.glob, item))])
    error_message = "protected_clusters: every item must be one id or glob: letters, digits, _ - . and * ? [abc] [!abc], no comma or white space."
  }
  validation {
    condition     = alltrue([for item in var.protected_clusters : try(length(replace(replace(item, "/\\[[^\\]]*\\]/", "?"), "*", "")) <= 64, false)])
    error_message = "protected_clusters: no id or name is longer than 64 characters, so a glob that needs more matches nothing."
  }
}

variable "require_empty" {
  description = "Whether a cluster of type HPS with members is kept."
  type        = bool
  default     = true
  nullable    = false
}

variable "webhook_secrets" {
  description = "Where the webhook's secrets stand, as credentials; null for the module's own secret. Never the secrets themselves."
  type        = string
  default     = null
  sensitive   = true
}
