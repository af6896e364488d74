"""Write down what a plan holds, the way the README shows it: what is made, who may do what, and the gcloud commands."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from infra.workbench import Plan

Values = Mapping[str, Any]

GRANTS = (
    "google_artifact_registry_repository_iam_member",
    "google_cloud_run_v2_service_iam_member",
    "google_kms_crypto_key_iam_member",
    "google_project_iam_member",
    "google_pubsub_subscription_iam_member",
    "google_pubsub_topic_iam_member",
    "google_secret_manager_secret_iam_member",
    "google_service_account_iam_member",
    "google_storage_bucket_iam_member",
)

# In the order in which the README lists them; the attribute that names one.
_MADE = {
    "google_cloudfunctions2_function": ("function", "name"),
    "google_pubsub_topic": ("topic", "name"),
    "google_pubsub_subscription": ("subscription", "name"),
    "google_secret_manager_secret": ("secret, empty", "secret_id"),
    "google_firestore_database": ("Firestore database", "name"),
    "google_storage_bucket": ("bucket, for the source", "name"),
    "google_artifact_registry_repository": ("image repository", "repository_id"),
    "google_service_account": ("service account", "account_id"),
    "google_logging_metric": ("log metric", "name"),
    "google_monitoring_alert_policy": ("alert", "display_name"),
    "google_project_service": ("API, switched on", "service"),
}


def made(plan: Plan) -> str:
    """List what the plan makes, a row for each kind of thing."""
    rows = ["| what | names |", "|---|---|"]
    for kind, (word, attribute) in _MADE.items():
        names = sorted(
            f"`{values[attribute].removeprefix('modelarts-cleanup: ').removesuffix('.googleapis.com')}`"
            for values in plan.of(kind).values()
        )
        rows.append(f"| {word} ({len(names)}) | {', '.join(names)} |")
    ttl = [values["field"] for values in plan.of("google_firestore_field").values() if values["ttl_config"]]
    unsearched = len(plan.of("google_firestore_field")) - len(ttl)
    few = f"dashboard (1), grants ({len(plan.of(*GRANTS))}), TTL ({len(ttl)}), fields without index ({unsearched})"
    rows.append(f"| {few} | |")
    return "\n".join(rows).replace("example-project", "PROJECT")


# In USD.
PRICES = "https://cloud.google.com/pricing/list"
LOOKED_UP = "1 December 2026"
SECRET_VERSION = 0.06  # a month, in each place
STORED_IMAGES = 0.10  # a GB and month
METRIC_ALERTED_ON = 0.35  # a month; announced, for 1 September 2027 at the earliest
MILLION_POINTS = 0.50
WARM_SECOND = 0.0000025  # of a vCPU, and of a GiB, in regions such as europe-west1

_IMAGES_GB = 0.5  # about what a build and its cache take
_POINTS = 3600 * 730 // 30  # of one series, which is looked at every 30 seconds
_SECONDS = 3600 * 730


def costs(plan: Plan) -> str:
    """Reckon what the plan costs in a month in which nothing happens."""
    secrets = len(plan.of("google_secret_manager_secret"))
    alerts = [values["conditions"][0] for values in plan.of("google_monitoring_alert_policy").values()]
    metrics = sum(bool(condition["condition_threshold"]) for condition in alerts)
    (service,) = plan["google_cloudfunctions2_function.cleanup"]["service_config"]
    size = int(service["available_cpu"]) + int(service["available_memory"].removesuffix("Mi")) / 1024
    stored = _IMAGES_GB * STORED_IMAGES
    alerting = metrics * (METRIC_ALERTED_ON + MILLION_POINTS * _POINTS / 1e6)
    rows: list[tuple[object, ...]] = [
        ("what", "rate in USD", "how many", "a month"),
        ("---",) * 4,
        ("secret versions", f"{SECRET_VERSION:.2f} each; six are free", secrets, f"{secrets * SECRET_VERSION:.2f}"),
        (
            "images and build cache",
            f"{STORED_IMAGES:.2f} a GB; 0.5 GB are free",
            f"about {_IMAGES_GB} GB",
            f"{stored:.2f}",
        ),
        (
            "alerts on a metric",
            f"from September 2027: {METRIC_ALERTED_ON:.2f} a metric and {MILLION_POINTS:.2f} a million points",
            f"{metrics}, with {_POINTS} points each",
            f"0; {alerting:.2f}",
        ),
        ("everything else in the table above", "nothing at rest", "", "0"),
        (
            "kept warm with `min_instances = 1`",
            f"{WARM_SECOND:.7f} a second, for a vCPU and for a GiB",
            f"{size:g} × {_SECONDS} s",
            f"{size * _SECONDS * WARM_SECOND:.2f}",
        ),
    ]
    table = "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows).replace(" --- ", "---")
    return (
        f"About **{secrets * SECRET_VERSION + stored:.2f} USD a month**, before any free tier. "
        f"Rates: [list prices]({PRICES}), as public sources gave them on {LOOKED_UP}; what you pay is what the list "
        f"says on the day.\n\n{table}"
    )


def grantee(member: str) -> str:
    """Say who a member is in our words: build, run, push, webhook, everyone, or a service agent."""
    ours = re.fullmatch(r"serviceAccount:[a-z0-9-]+-(build|run|push|webhook)@.*", member)
    agent = re.fullmatch(r"serviceAccount:service-\d+@(gcp-sa-([a-z]+)|gs-project-accounts)\.iam.*", member)
    if ours:
        return ours[1]
    if agent:
        return f"service agent {agent[2] or 'storage'}"
    return {"allUsers": "everyone", "": "known after apply"}[member]


def granted_on(kind: str, values: Values) -> str:
    """Say what a grant is on."""
    word = kind.removeprefix("google_").removesuffix("_iam_member")
    if word == "project":
        (condition,) = values["condition"] or [{"expression": ""}]
        return f"the project, if `{condition['expression']}`" if condition["expression"] else "the project"
    named: dict[str, tuple[str, str]] = {
        "artifact_registry_repository": ("image repository", "repository"),
        "cloud_run_v2_service": ("service", "name"),
        "kms_crypto_key": ("key", "crypto_key_id"),
        "pubsub_subscription": ("subscription", "subscription"),
        "pubsub_topic": ("topic", "topic"),
        "secret_manager_secret": ("secret", "secret_id"),
        "service_account": ("service account", "service_account_id"),
        "storage_bucket": ("bucket", "bucket"),
    }
    what, attribute = named[word]
    return f"{what} `{values[attribute].rsplit('/', 1)[-1].split('@')[0]}`"


def rights(plan: Plan) -> set[tuple[str, str, str]]:
    """Tell every grant of the plan: who, which role, on what."""
    return {
        (grantee(item["values"].get("member", "")), item["values"]["role"], granted_on(item["type"], item["values"]))
        for item in plan.resources.values()
        if item["type"] in GRANTS
    }


def rights_table(plan: Plan) -> str:
    """Write the grants as the README shows them."""
    order = ["build", "run", "push", "webhook", "everyone"]
    rows = sorted(rights(plan), key=lambda row: (order.index(row[0]) if row[0] in order else 9, row))
    lines = [f"| {who} | `{role}` | {what} |" for who, role, what in rows]
    text = "\n".join(["| who | role | on |", "|---|---|---|", *lines])
    return (
        text.replace("example-project", "PROJECT").replace("123456789012", "NUMBER").replace("europe-west1", "REGION")
    )


# ---- gcloud ----------------------------------------------------------------------------------------------------------


def _quoted(value: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_./:@=,+-]+", value):
        return value
    escaped = re.sub(r'(["\\`$])', r"\\\1", value)
    return f'"{escaped}"'


def _command(*parts: str, **flags: object) -> str:
    """Join a command; a flag that is True has no value, and one that is None or empty is left out."""
    told = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={_quoted(str(value))}")
        for name, value in flags.items()
        if value not in (None, "", False)
    ]
    return " \\\n  ".join([" ".join(_quoted(part) for part in parts), *told])


def _function(values: Values) -> str:
    (build,), (service,) = values["build_config"], values["service_config"]
    (source,) = build["source"][0]["storage_source"]
    variables = "|".join(f"{name}={value}" for name, value in sorted(service["environment_variables"].items()))
    return _command(
        *("gcloud", "functions", "deploy", values["name"]),
        gen2=True,
        region=values["location"],
        runtime=build["runtime"],
        entry_point=build["entry_point"],
        source=f"gs://{source['bucket']}/{source['object']}",
        trigger_http=True,
        no_allow_unauthenticated=True,
        ingress_settings={"ALLOW_INTERNAL_ONLY": "internal-only", "ALLOW_ALL": "all"}[service["ingress_settings"]],
        run_service_account=service["service_account_email"],
        build_service_account=build["service_account"],
        docker_repository=build["docker_repository"],
        timeout=f"{service['timeout_seconds']}s",
        cpu=service["available_cpu"],
        memory=service["available_memory"],
        concurrency=service["max_instance_request_concurrency"],
        min_instances=str(service["min_instance_count"]),
        max_instances=str(service["max_instance_count"]),
        set_env_vars=f"^|^{variables}",  # a list within a list: `|` between them, for `,` is within
    )


def _subscription(values: Values) -> str:
    (push,) = values["push_config"] or [None]
    (retry,) = values["retry_policy"] or [{}]
    (dead,) = values["dead_letter_policy"] or [{}]
    (expiry,) = values["expiration_policy"]
    pushed: dict[str, object] = {}
    if push:
        (token,) = push["oidc_token"]
        pushed = {
            "push_endpoint": push["push_endpoint"],
            "push_auth_service_account": token["service_account_email"],
            "push_auth_token_audience": token["audience"],
            "push_no_wrapper": True,
            "push_no_wrapper_write_metadata": push["no_wrapper"][0]["write_metadata"],
        }
    return _command(
        *("gcloud", "pubsub", "subscriptions", "create", values["name"]),
        topic=values["topic"],
        message_filter=values["filter"],
        ack_deadline=values["ack_deadline_seconds"],
        message_retention_duration=values["message_retention_duration"],
        expiration_period="never" if expiry["ttl"] == "" else expiry["ttl"],
        **pushed,
        min_retry_delay=retry.get("minimum_backoff"),
        max_retry_delay=retry.get("maximum_backoff"),
        dead_letter_topic=dead.get("dead_letter_topic"),
        max_delivery_attempts=dead.get("max_delivery_attempts"),
    )


def _grant(*command: str, **flags: object) -> Callable[[Values], str]:
    def write(values: Values) -> str:
        filled = [part.format_map(values) for part in command]
        named = {name: str(value).format_map(values) for name, value in flags.items()}
        return _command(*filled, **named, role=values["role"], member=values["member"])

    return write


def _project_grant(values: Values) -> str:
    (condition,) = values["condition"] or [None]
    told = f"expression={condition['expression']},title={condition['title']}" if condition else "None"
    command = ("gcloud", "projects", "add-iam-policy-binding", values["project"])
    return _command(*command, role=values["role"], member=values["member"], condition=told)


def _bucket(values: Values) -> str:
    return _command(
        *("gcloud", "storage", "buckets", "create", f"gs://{values['name']}"),
        location=values["location"],
        uniform_bucket_level_access=values["uniform_bucket_level_access"],
        public_access_prevention=values["public_access_prevention"] == "enforced",
    )


def _bundle(values: Values) -> str:
    return "\n".join(
        [
            "(cd function && zip -X -q -r ../function.zip main.py requirements.txt modelarts_cleanup \\",
            "  -i '*.py' requirements.txt -x 'modelarts_cleanup/local/*')",
            'HASH="$(sha256sum function.zip | cut -c1-64)"',
            _command("gcloud", "storage", "cp", "function.zip", f"gs://{values['bucket']}/{values['name']}"),
        ]
    )


def _secret(values: Values) -> str:
    (replica,) = values["replication"][0]["user_managed"][0]["replicas"]
    command = ("gcloud", "secrets", "create", values["secret_id"])
    return _command(*command, replication_policy="user-managed", locations=replica["location"])


def _database(values: Values) -> str:
    return _command(
        *("gcloud", "firestore", "databases", "create"),
        database=values["name"],
        location=values["location_id"],
        type=values["type"].lower().replace("_", "-"),
        delete_protection=values["delete_protection_state"] == "DELETE_PROTECTION_ENABLED",
    )


def _field(values: Values) -> str:
    place: dict[str, object] = {"collection_group": values["collection"], "database": values["database"]}
    ttl = ("gcloud", "firestore", "fields", "ttls", "update", values["field"])
    indexes = ("gcloud", "firestore", "indexes", "fields", "update", values["field"])
    commands = [_command(*ttl, **place, enable_ttl=True)] if values["ttl_config"] else []
    return "\n".join([*commands, _command(*indexes, **place, disable_indexes=True)])


def _repository(values: Values) -> str:
    return _command(
        *("gcloud", "artifacts", "repositories", "create", values["repository_id"]),
        repository_format=values["format"].lower(),
        location=values["location"],
        description=values["description"],
    )


def _account(values: Values) -> str:
    command = ("gcloud", "iam", "service-accounts", "create", values["account_id"])
    return _command(*command, display_name=values["display_name"])


_BINDING = "add-iam-policy-binding"

# In the order in which they have to be given.
WRITERS: dict[str, Callable[[Values], str]] = {
    "google_storage_bucket": _bucket,
    "google_storage_bucket_object": _bundle,
    "google_artifact_registry_repository": _repository,
    "google_service_account": _account,
    "google_secret_manager_secret": _secret,
    "google_firestore_database": _database,
    "google_firestore_field": _field,
    "google_pubsub_topic": lambda values: _command("gcloud", "pubsub", "topics", "create", values["name"]),
    "google_storage_bucket_iam_member": _grant("gcloud", "storage", "buckets", _BINDING, "gs://{bucket}"),
    "google_artifact_registry_repository_iam_member": _grant(
        *("gcloud", "artifacts", "repositories", _BINDING, "{repository}"), location="{location}"
    ),
    "google_project_iam_member": _project_grant,
    "google_secret_manager_secret_iam_member": _grant("gcloud", "secrets", _BINDING, "{secret_id}"),
    "google_pubsub_topic_iam_member": _grant("gcloud", "pubsub", "topics", _BINDING, "{topic}"),
    "google_cloudfunctions2_function": _function,
    "google_cloud_run_v2_service_iam_member": _grant(
        *("gcloud", "run", "services", _BINDING, "{name}"), region="{location}"
    ),
    "google_service_account_iam_member": _grant(
        *("gcloud", "iam", "service-accounts", _BINDING, "{service_account_id}")
    ),
    "google_pubsub_subscription": _subscription,
    "google_pubsub_subscription_iam_member": _grant("gcloud", "pubsub", "subscriptions", _BINDING, "{subscription}"),
}

# What Terraform makes and these commands don't: nothing that the function needs.
LEFT_OUT = {"google_logging_metric", "google_monitoring_alert_policy", "google_monitoring_dashboard", "archive_file"}


def _commands(plan: Plan) -> Iterator[str]:
    services = sorted(values["service"] for values in plan.of("google_project_service").values())
    yield _command("gcloud", "services", "enable", *services).replace(".com ", ".com \\\n  ")
    for kind, write in WRITERS.items():
        for _, values in sorted(plan.of(kind).items()):
            yield write(values)
        if kind == "google_cloudfunctions2_function":
            (function,) = plan.of(kind).values()
            flags = {"region": function["location"], "format": "value(serviceConfig.uri)"}
            describe = _command("gcloud", "functions", "describe", function["name"], gen2=True, **flags)
            yield f'URL="$({describe.replace(" " + chr(92) + chr(10) + " ", "")})"'


def gcloud(plan: Plan) -> str:
    """Write the commands that make what the plan makes."""
    text = "\n".join(_commands(plan))
    (function,) = plan.of("google_cloudfunctions2_function").values()
    (bundle,) = plan.of("google_storage_bucket_object").values()
    for value, variable in (
        (function["service_config"][0]["uri"], "$URL"),
        (bundle["name"].removeprefix("function-").removesuffix(".zip"), "$HASH"),
        ("0123456789abcdef0123456789abcdef", "$MODELARTS_PROJECT"),
        ("example-project", "$PROJECT"),
        ("europe-west1", "$REGION"),
        ("123456789012", "$NUMBER"),
    ):
        text = text.replace(value, variable)
    head = [
        "PROJECT=example-project REGION=europe-west1 MODELARTS_PROJECT=0123456789abcdef0123456789abcdef",
        'gcloud config set project "$PROJECT"',
        'NUMBER="$(gcloud projects describe "$PROJECT" --format=\'value(projectNumber)\')"',
    ]
    return "\n".join([*head, text])
