# What may stand in a variable that names a place, and what a glob is: never more than the function itself can read
# (places.py and settings.py), or an apply would end in a function that serves nothing. A test compares the two.

locals {
  google_project = "([a-z0-9.-]+:)?[a-z0-9-]{1,63}"
  port           = "(:([1-9][0-9]{0,3}|[1-5][0-9]{4}))?"
  after_host     = "([/?][!\"$-~]*)?"             # what is visible, but no fragment
  file           = "[!\"$&->@-~]*[!\"$&-.0->@-~]" # what is visible, but no query, fragment, escape, or / at the end

  secret_place = "^(secretmanager://projects/${local.google_project}/secrets/[A-Za-z0-9_-]{1,255}(/versions/[A-Za-z0-9_-]{1,63})?|file:///${local.file})$"
  ledger_place = "^(firestore://projects/${local.google_project}/databases/([(]default[)]|[a-z0-9-]{1,63})|sqlite:///${local.file})$"
  sink_place = join("", ["^(", join("|", [
    "pubsub://projects/${local.google_project}/topics/[A-Za-z][A-Za-z0-9._~+%-]{2,254}",
    "https://[A-Za-z0-9._-]+${local.port}${local.after_host}",
    "http://(localhost|127[.]0[.]0[.]1|\\[::1\\])${local.port}${local.after_host}",
    "file:///${local.file}",
  ]), ")$"])

  # Characters, ? and *, and classes such as [abc] and [!a-c].
  glob = "^([A-Za-z0-9_.*?-]|\\[!?[A-Za-z0-9_.-]+\\])+$"
}
