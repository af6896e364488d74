"""What every plan must hold (the contract's section on deployment), as functions that assert on a plan.

They are used twice: on the module as it is, where all must hold, and on altered copies, where the right one must not.
"""

import ast
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from infra.tables import rights
from infra.workbench import Plan

AGENT = "service agent pubsub"
TECHNICAL = {"THREADS", "GOOGLE_CLOUD_PROJECT"}
WEEK = "604800s"


def cleanup(plan: Plan) -> Mapping[str, Any]:
    values: Mapping[str, Any] = plan["google_cloudfunctions2_function.cleanup"]
    return values


def service(values: Mapping[str, Any]) -> Mapping[str, Any]:
    config: Mapping[str, Any] = values["service_config"][0]
    return config


def environment(plan: Plan) -> Mapping[str, str]:
    variables: Mapping[str, str] = service(cleanup(plan))["environment_variables"]
    return variables


def the_push_is_unwrapped_patient_and_never_expires(plan: Plan) -> None:
    values = plan["google_pubsub_subscription.push"]
    (push,), (retry,), (dead,) = values["push_config"], values["retry_policy"], values["dead_letter_policy"]
    assert values["topic"] == plan["google_pubsub_topic.expiries"]["id"]
    assert push["push_endpoint"] == service(cleanup(plan))["uri"]
    assert push["push_endpoint"].endswith(".run.app")
    assert push["no_wrapper"] == [{"write_metadata": True}]
    (token,) = push["oidc_token"]
    assert token["service_account_email"] == plan["google_service_account.push"]["email"]
    assert token["audience"] == push["push_endpoint"]
    assert values["ack_deadline_seconds"] == 600
    assert (retry["minimum_backoff"], retry["maximum_backoff"]) == ("10s", "600s")
    assert dead["max_delivery_attempts"] == 20
    assert dead["dead_letter_topic"] == plan["google_pubsub_topic.dead_letters"]["id"]
    assert values["message_retention_duration"] == WEEK
    assert values["expiration_policy"] == [{"ttl": ""}]
    assert not values["filter"]
    assert not values["enable_message_ordering"]
    assert not values["enable_exactly_once_delivery"]


def dead_letters_are_kept_and_pubsub_may_move_them(plan: Plan) -> None:
    kept = plan["google_pubsub_subscription.dead_letters"]
    assert kept["topic"] == plan["google_pubsub_topic.dead_letters"]["id"]
    _keeps_for_a_person(kept)
    assert not kept["filter"]
    topic, push = plan["google_pubsub_topic.dead_letters"]["name"], plan["google_pubsub_subscription.push"]["name"]
    assert {
        (AGENT, "roles/pubsub.publisher", f"topic `{topic}`"),
        (AGENT, "roles/pubsub.subscriber", f"subscription `{push}`"),
    } <= rights(plan)


def failed_and_rejected_are_kept(plan: Plan) -> None:
    kept = plan["google_pubsub_subscription.attention"]
    assert kept["topic"] == plan["google_pubsub_topic.completions"]["id"]
    _keeps_for_a_person(kept)
    assert set(re.findall(r'attributes\.ce-outcome = "(\w+)"', kept["filter"])) == {"failed", "rejected"}
    assert " OR " in kept["filter"]


def _keeps_for_a_person(values: Mapping[str, Any]) -> None:
    assert values["push_config"] == []
    assert values["message_retention_duration"] == WEEK
    assert values["expiration_policy"] == [{"ttl": ""}]


def the_function_is_internal_and_answers_in_time(plan: Plan) -> None:
    config = service(cleanup(plan))
    assert config["ingress_settings"] == "ALLOW_INTERNAL_ONLY"
    assert config["timeout_seconds"] == 540
    assert config["timeout_seconds"] < plan["google_pubsub_subscription.push"]["ack_deadline_seconds"]
    assert config["environment_variables"]["THREADS"] == str(config["max_instance_request_concurrency"])
    assert float(config["available_cpu"]) >= 1
    assert config["available_memory"] == "512Mi"
    assert cleanup(plan)["event_trigger"] == []


def only_the_webhook_is_public(plan: Plan) -> None:
    functions = plan.of("google_cloudfunctions2_function")
    webhook = {values["name"] for address, values in functions.items() if ".webhook" in address}
    public = {
        values["name"] for values in functions.values() if service(values)["ingress_settings"] != "ALLOW_INTERNAL_ONLY"
    }
    assert public == webhook
    everyone = {what for who, _, what in rights(plan) if who == "everyone"}
    assert everyone == {f"service `{name}`" for name in webhook}


def every_identity_has_exactly_these_rights(plan: Plan) -> None:
    name, project = cleanup(plan)["name"], cleanup(plan)["project"]
    region = cleanup(plan)["location"]
    ledger = f'the project, if `resource.name == "projects/{project}/databases/{name}-ledger"`'
    copies = f"projects/_/buckets/gcf-v2-sources-123456789012-{region}"
    expected = {
        ("build", "roles/artifactregistry.writer", f"image repository `{name}`"),
        ("build", "roles/logging.logWriter", "the project"),
        ("build", "roles/storage.objectViewer", f"bucket `{project}-{name}-source`"),
        ("build", "roles/storage.objectViewer", f'the project, if `resource.name.startsWith("{copies}")`'),
        ("run", "roles/datastore.user", ledger),
        ("run", "roles/pubsub.publisher", f"topic `{name}-completions`"),
        ("run", "roles/secretmanager.secretAccessor", f"secret `{name}-credentials`"),
        ("push", "roles/run.invoker", f"service `{name}`"),
        (AGENT, "roles/iam.serviceAccountTokenCreator", f"service account `{name}-push`"),
        (AGENT, "roles/pubsub.publisher", f"topic `{name}-dead-letters`"),
        (AGENT, "roles/pubsub.subscriber", f"subscription `{name}-push`"),
    }
    if plan.of("google_service_account").get("google_service_account.webhook[0]"):
        expected |= {
            ("webhook", "roles/pubsub.publisher", f"topic `{name}-expiries`"),
            ("webhook", "roles/secretmanager.secretAccessor", f"secret `{name}-webhook-secrets`"),
            ("everyone", "roles/run.invoker", f"service `{name}-webhook`"),
        }
    found = rights(plan)
    keys = {row for row in found if row[2].startswith("key ")}
    assert found - keys == expected
    assert {role for _, role, _ in keys} <= {"roles/cloudkms.cryptoKeyEncrypterDecrypter"}


def identities_are_our_own_and_have_no_key(plan: Plan) -> None:
    accounts = {values["account_id"].rsplit("-", 1)[1] for values in plan.of("google_service_account").values()}
    functions = plan.of("google_cloudfunctions2_function")
    assert accounts == {"build", "run", "push"} | ({"webhook"} if len(functions) > 1 else set())
    for address, values in functions.items():
        who = "webhook" if ".webhook" in address else "run"
        own = next(account for at, account in plan.of("google_service_account").items() if f".{who}" in at)
        assert service(values)["service_account_email"] == own["email"]
        assert values["build_config"][0]["service_account"] == plan["google_service_account.build"]["id"]
    assert not plan.of("google_service_account_key")


def no_secret_has_a_value(plan: Plan) -> None:
    kinds = {item["type"] for item in plan.resources.values()}
    assert not {kind for kind in kinds if kind.startswith("google_secret_manager_secret_version")}
    # Not as a literal, a variable or an environment taken from a secret, which only an instance's start would renew.
    assert not re.search(r"whsec_[A-Za-z0-9+/]|BEGIN [A-Z ]*PRIVATE KEY", json.dumps(plan.document["planned_values"]))
    for values in plan.of("google_cloudfunctions2_function").values():
        assert not service(values)["secret_environment_variables"]


def the_ledger_is_protected_and_forgets(plan: Plan) -> None:
    database = plan["google_firestore_database.ledger[0]"]
    assert database["type"] == "FIRESTORE_NATIVE"
    assert database["delete_protection_state"] == "DELETE_PROTECTION_ENABLED"
    assert database["deletion_policy"] == "ABANDON"
    fields = {values["field"]: values for values in plan.of("google_firestore_field").values()}
    assert {name for name, values in fields.items() if values["ttl_config"]} == {"forget_at"}
    assert set(fields) == {"entry", "forget_at"}
    for values in fields.values():
        assert (values["database"], values["collection"]) == (database["name"], "ledger")
        assert [config["indexes"] for config in values["index_config"]] == [[]], "an index that nobody reads"


def the_webhook_knows_only_what_it_needs(plan: Plan) -> None:
    for address, values in plan.of("google_cloudfunctions2_function").items():
        if ".webhook" in address:
            assert set(service(values)["environment_variables"]) == {"EXPIRY_SINK", "WEBHOOK_SECRETS"} | TECHNICAL
            assert values["build_config"][0]["entry_point"] == "webhook"


def the_source_is_named_by_its_hash(plan: Plan) -> None:
    held = plan["google_storage_bucket_object.bundle"]
    digest = plan.data["data.archive_file.bundle"]["values"]["output_sha256"]
    assert re.fullmatch(r"[0-9a-f]{64}", digest)
    assert held["name"] == f"function-{digest}.zip"
    for values in plan.of("google_cloudfunctions2_function").values():
        (source,) = values["build_config"][0]["source"][0]["storage_source"]
        assert (source["bucket"], source["object"]) == (held["bucket"], held["name"])


def everything_dangerous_is_off(plan: Plan) -> None:
    assert environment(plan)["DRY_RUN"] == "true"
    assert environment(plan)["REQUIRE_EMPTY"] == "true"
    assert environment(plan)["DELETIONS_PER_HOUR"] == "10"
    assert "google_cloudfunctions2_function.webhook[0]" not in plan
    assert service(cleanup(plan))["min_instance_count"] == 0
    assert service(cleanup(plan))["max_instance_count"] == 5


def apis_are_never_switched_off(plan: Plan) -> None:
    apis = plan.of("google_project_service").values()
    assert {"pubsub.googleapis.com", "run.googleapis.com", "firestore.googleapis.com"} <= {
        api["service"] for api in apis
    }
    assert not any(api["disable_on_destroy"] for api in apis)


def alerts_tell_what_to_do(plan: Plan) -> None:
    alerts = {
        re.sub(r'.*\["(\w+)"\]', r"\1", address): values
        for address, values in plan.of("google_monitoring_alert_policy").items()
    }
    assert set(alerts) == {"dead_letters", "waiting", "push_refused", "attention", "credentials", "deletion_limit"}
    for values in alerts.values():
        (condition,), (text,) = values["conditions"], values["documentation"]
        assert len(text["content"]) > 150
        # The API takes no filter without a resource type, and no alert on log lines without a rate limit.
        (measured,) = condition["condition_threshold"] or condition["condition_matched_log"]
        assert "resource.type = " in measured["filter"]
        if condition["condition_matched_log"]:
            assert values["alert_strategy"][0]["notification_rate_limit"] == [{"period": "3600s"}]
    measures = {
        name: values["conditions"][0]["condition_threshold"][0]
        for name, values in alerts.items()
        if values["conditions"][0]["condition_threshold"]
    }
    assert "num_undelivered_messages" in measures["dead_letters"]["filter"]
    assert f'"{plan["google_pubsub_subscription.dead_letters"]["name"]}"' in measures["dead_letters"]["filter"]
    assert measures["dead_letters"]["threshold_value"] in (None, 0)
    assert "oldest_unacked_message_age" in measures["waiting"]["filter"]
    assert measures["waiting"]["threshold_value"] == 15 * 60
    refused = measures["push_refused"]["filter"]
    assert "push_request_count" in refused
    assert set(re.findall(r"remote_server_\w+|invalid|unreachable", refused)) == {
        "remote_server_4xx",
        "invalid",
        "unreachable",
    }
    assert not any("logging.googleapis.com/user/" in measure["filter"] for measure in measures.values())
    logs = {name: values["conditions"][0]["condition_matched_log"] for name, values in alerts.items()}
    assert '("failed" OR "rejected")' in logs["attention"][0]["filter"]
    assert '"credentials_refused"' in logs["credentials"][0]["filter"]
    assert '"deletion_limit"' in logs["deletion_limit"][0]["filter"]


def metrics_count_by_outcome(plan: Plan) -> None:
    outcomes = plan["google_logging_metric.outcomes"]
    assert outcomes["label_extractors"] == {
        "outcome": "EXTRACT(jsonPayload.outcome)",
        "reason": "EXTRACT(jsonPayload.reason)",
    }
    duration = plan["google_logging_metric.duration"]
    assert duration["value_extractor"] == "EXTRACT(jsonPayload.duration_ms)"
    shown = plan["google_monitoring_dashboard.cleanup"]["dashboard_json"]
    for word in ("deleted", "skipped", "failed", "rejected", "retry", outcomes["name"], duration["name"]):
        assert word in shown
    for at in ("push", "dead_letters", "attention"):
        assert plan[f"google_pubsub_subscription.{at}"]["name"] in shown


def the_zip_holds_the_function_and_nothing_else(plan: Plan, path: Path, function: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert len({entry.external_attr for entry in archive.infolist()}) == 1
        assert len({entry.date_time for entry in archive.infolist()}) == 1
        contents = {name: archive.read(name) for name in names}
    package = {
        file.relative_to(function).as_posix()
        for file in (function / "modelarts_cleanup").rglob("*.py")
        if "local" not in file.relative_to(function).parts and "__pycache__" not in file.parts
    }
    assert names == sorted(names)
    assert set(names) == {"main.py", "requirements.txt"} | package
    assert contents == {name: (function / name).read_bytes() for name in names}
    for name in names:
        if name.endswith(".py"):
            ast.parse(contents[name])
    assert {item["filename"] for item in plan.data["data.archive_file.bundle"]["values"]["source"]} == set(names)


# What holds for every plan, and what holds where nothing but the five variables is given.
ALWAYS: tuple[Callable[[Plan], None], ...] = (
    the_push_is_unwrapped_patient_and_never_expires,
    dead_letters_are_kept_and_pubsub_may_move_them,
    failed_and_rejected_are_kept,
    the_function_is_internal_and_answers_in_time,
    only_the_webhook_is_public,
    every_identity_has_exactly_these_rights,
    identities_are_our_own_and_have_no_key,
    no_secret_has_a_value,
    the_ledger_is_protected_and_forgets,
    the_webhook_knows_only_what_it_needs,
    the_source_is_named_by_its_hash,
    apis_are_never_switched_off,
    alerts_tell_what_to_do,
    metrics_count_by_outcome,
)
BY_DEFAULT = (*ALWAYS, everything_dangerous_is_off)
