"""The Terraform module: planned with the schemas of the oldest and the newest providers it admits, without a cloud."""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from unittest.mock import MagicMock

import flask
import pytest
from infra.tables import LEFT_OUT, WRITERS, costs, gcloud, made, rights_table
from infra.workbench import ARCHIVE, FIVE, GOOGLE, MODULE, ROOT, Plan, SchemaMissingError, Workbench, schema
from modelarts_cleanup import app, entries, model, places, settings
from modelarts_cleanup.adapters import ledger_firestore
from served import EXPIRED
from served import settings as environment_in

from infra import promises

NEWEST = list(GOOGLE)[-1]
README = ROOT / "README.md"
# Values that look like secrets, to see that none gets anywhere.
PASTED = ("whsec_a2V5a2V5a2V5a2V5", '{"access_key": "AKIDPASTED", "secret_key": "SKPASTED"}')


def workbench(folder: Path, version: str, *, whole: bool) -> Workbench:
    if shutil.which("terraform") is None:
        pytest.skip("terraform is not installed")
    try:
        google, archive = schema(GOOGLE[version], "google"), schema(ARCHIVE, "archive")
    except SchemaMissingError as missing:
        pytest.skip(str(missing))
    bench = Workbench(folder, google, archive, whole=whole)
    bench.init()
    return bench


@pytest.fixture(scope="session")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, bool], Workbench]]:
    made: dict[tuple[str, bool], Workbench] = {}

    def get(version: str, whole: bool) -> Workbench:  # noqa: FBT001 - in a cache's key
        if (version, whole) not in made:
            made[version, whole] = workbench(tmp_path_factory.mktemp("infra"), version, whole=whole)
        return made[version, whole]

    yield get
    for bench in made.values():
        bench.close()


@pytest.fixture(scope="session")
def plans(benches: Callable[[str, bool], Workbench]) -> Callable[[str, str], Plan]:
    """Plan once for each version and purpose, in whatever order the tests run."""

    @cache
    def get(version: str, purpose: str) -> Plan:
        bench = benches(version, purpose == "five" and version == NEWEST)
        if purpose.startswith("examples/"):
            bench.init(purpose)
            return bench.plan({}, purpose)
        return bench.plan(FIVE if purpose == "five" else {**FIVE, "webhook_enabled": True})

    return get


@pytest.fixture(params=GOOGLE)
def minimal(plans: Callable[[str, str], Plan], request: pytest.FixtureRequest) -> Plan:
    return plans(request.param, "five")


@pytest.fixture(params=GOOGLE)
def full(plans: Callable[[str, str], Plan], request: pytest.FixtureRequest) -> Plan:
    return plans(request.param, "examples/full")


@pytest.fixture
def newest(benches: Callable[[str, bool], Workbench]) -> Workbench:
    return benches(NEWEST, False)  # noqa: FBT003 - in a cache's key


@pytest.fixture
def whole(benches: Callable[[str, bool], Workbench]) -> Workbench:
    return benches(NEWEST, True)  # noqa: FBT003 - in a cache's key


@pytest.fixture
def by_default(plans: Callable[[str, str], Plan]) -> Plan:
    return plans(NEWEST, "five")


@pytest.fixture
def with_webhook(plans: Callable[[str, str], Plan]) -> Plan:
    return plans(NEWEST, "webhook")


# ---- what every plan holds -------------------------------------------------------------------------------------------


def each_of(checks: tuple[Callable[[Plan], None], ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("check", checks, ids=lambda check: check.__name__)


@each_of(promises.BY_DEFAULT)
def test_with_five_variables(minimal: Plan, check: Callable[[Plan], None]) -> None:
    check(minimal)


@each_of(promises.ALWAYS)
def test_with_everything_set(full: Plan, check: Callable[[Plan], None]) -> None:
    check(full)


@each_of(promises.ALWAYS)
def test_with_the_webhook(with_webhook: Plan, check: Callable[[Plan], None]) -> None:
    check(with_webhook)


def test_the_key_encrypts_topics_secrets_database_and_source(full: Plan) -> None:
    key = "projects/example-keys/locations/europe-west1/keyRings/cleanup/cryptoKeys/cleanup"
    assert {values["kms_key_name"] for values in full.of("google_pubsub_topic").values()} == {key}
    for values in full.of("google_secret_manager_secret").values():
        (replica,) = values["replication"][0]["user_managed"][0]["replicas"]
        assert [held["kms_key_name"] for held in replica["customer_managed_encryption"]] == [key]
    assert full["google_firestore_database.ledger[0]"]["cmek_config"][0]["kms_key_name"] == key
    assert full["google_storage_bucket.source"]["encryption"][0]["default_kms_key_name"] == key
    agents = {address for address in full.resources if address.startswith("google_kms_crypto_key_iam_member")}
    assert len(agents) == 4


def test_the_other_options_arrive(full: Plan) -> None:
    config = promises.service(promises.cleanup(full))
    assert (config["min_instance_count"], config["max_instance_count"]) == (1, 3)
    assert config["vpc_connector"] == "projects/example-project/locations/europe-west1/connectors/cleanup"
    assert config["vpc_connector_egress_settings"] == "ALL_TRAFFIC"
    for values in full.of("google_monitoring_alert_policy").values():
        assert values["notification_channels"] == ["projects/example-project/notificationChannels/1234567890"]
    for values in full.of("google_pubsub_topic", "google_pubsub_subscription", "google_storage_bucket").values():
        assert values["labels"] == {"team": "platform", "cost-centre": "4711"}


def test_the_minimal_example_is_what_five_variables_give(plans: Callable[[str, str], Plan], by_default: Plan) -> None:
    example = plans(NEWEST, "examples/minimal")
    assert set(example.resources) == set(by_default.resources)
    assert promises.environment(example) == promises.environment(by_default)


def test_after_an_apply_there_is_nothing_left_to_do_but_to_destroy_it(newest: Workbench) -> None:
    newest.init("examples/full")
    newest.run("apply", "-auto-approve", "-input=false", "-no-color", where="examples/full")
    again = newest.run("plan", "-detailed-exitcode", "-input=false", "-no-color", where="examples/full", check=False)
    state = newest.module / "examples" / "full" / "terraform.tfstate"
    try:
        assert again.returncode == 0, again.stdout + again.stderr
        newest.run("destroy", "-auto-approve", "-input=false", "-no-color", where="examples/full")
        assert json.loads(state.read_text())["resources"] == []
    finally:
        state.unlink()


SEVERAL = """
provider "google" {
  alias = "elsewhere"
}

module "first" {
  source           = "../.."
  project_id       = "example-project"
  region           = "europe-west1"
  modelarts_region = "cn-southwest-2"
  allowed_projects = ["a"]
  allowed_names    = ["ci-*"]
  webhook_enabled  = true
}

module "second" {
  for_each         = toset(["cn-north-4", "ap-southeast-1"])
  source           = "../.."
  providers        = { google = google.elsewhere }
  name             = "cleanup-${each.key}"
  project_id       = "example-project"
  region           = "europe-west1"
  modelarts_region = each.key
  allowed_projects = ["a"]
  allowed_names    = ["ci-*"]
  webhook_enabled  = true
}

module "staging" {
  source           = "../.."
  project_id       = "example-staging"
  region           = "europe-west1"
  modelarts_region = "cn-southwest-2"
  allowed_projects = ["a"]
  allowed_names    = ["ci-*"]
}
"""
BESIDE = """
resource "terraform_data" "made" {
  input = "projects/p/topics/made-by-the-same-apply"
}

module "modelarts_cleanup" {
  source           = "../.."
  project_id       = "example-project"
  region           = "europe-west1"
  modelarts_region = "cn-southwest-2"
  allowed_projects = ["a"]
  allowed_names    = ["ci-*"]
  webhook_enabled  = true
  completion_sink  = "pubsub://${terraform_data.made.output}"
  expiry_sink      = "pubsub://${terraform_data.made.output}"
  credentials      = "secretmanager://${terraform_data.made.output}"
  webhook_secrets  = "secretmanager://${terraform_data.made.output}"
  ledger           = "firestore://${terraform_data.made.output}"
  vpc_egress       = terraform_data.made.output
  alert_channels   = [terraform_data.made.output]
}
"""


def test_what_is_made_beside_the_module_can_be_handed_to_it(newest: Workbench) -> None:
    """Its id is not known to the first plan, which must yet know what the module makes itself."""
    folder = newest.module / "examples" / "beside"
    folder.mkdir()
    (folder / "deployment.tf").write_text(BESIDE)
    newest.init("examples/beside")
    plan = newest.plan({}, "examples/beside")
    kinds = {item["type"] for item in plan.resources.values()}
    assert not kinds & {"google_secret_manager_secret", "google_firestore_database", "google_firestore_field"}


# What names a thing within its project, or within the thing that it is in.
NAMED_BY = (
    *("name", "account_id", "secret_id", "repository_id", "display_name", "dashboard_json"),
    *("bucket", "database", "collection", "field"),
)


def test_several_deployments_share_nothing_but_the_apis(newest: Workbench) -> None:
    folder = newest.module / "examples" / "several"
    folder.mkdir()
    (folder / "deployments.tf").write_text(SEVERAL)
    newest.init("examples/several")
    plan = newest.plan({}, "examples/several")
    assert {address.partition(".google")[0] for address in plan.resources} == {
        "module.first",
        'module.second["cn-north-4"]',
        'module.second["ap-southeast-1"]',
        "module.staging",
    }
    named = [
        (item["type"], item["values"].get("project"), *(item["values"].get(name) for name in NAMED_BY))
        for item in plan.resources.values()
        if item["type"] != "google_project_service" and not item["type"].endswith("_iam_member")
    ]
    assert sorted(one for one in set(named) if named.count(one) > 1) == []
    zips = [item["values"]["output_path"] for item in plan.data.values() if item["type"] == "archive_file"]
    assert len(set(zips)) == len(zips) == 4, "two would write one file at the same time"


def test_the_dashboard_is_one_that_the_api_knows(full: Plan) -> None:
    api = pytest.importorskip("google.cloud.monitoring_dashboard_v1", exc_type=ImportError)
    sent = full["google_monitoring_dashboard.cleanup"]["dashboard_json"]
    read = api.types.Dashboard.from_json(sent)
    tiles = read.mosaic_layout.tiles
    assert len(tiles) == 15
    placed = {
        (x, y)
        for tile in tiles
        for x in range(tile.x_pos, tile.x_pos + tile.width)
        for y in range(tile.y_pos, tile.y_pos + tile.height)
    }
    assert len(placed) == sum(tile.width * tile.height for tile in tiles), "two tiles overlap"
    assert max(x for x, _ in placed) < read.mosaic_layout.columns <= 12  # the API's limit, now 48, once was 12
    # What is sent must come back, or the provider sees a change at every plan: the API drops zeros and what is empty.
    kept = api.types.Dashboard.to_json(read, always_print_fields_with_no_presence=False, use_integers_for_enums=False)
    assert json.loads(kept) == json.loads(sent)


def test_the_outputs_name_what_was_made(with_webhook: Plan) -> None:
    out = with_webhook.outputs
    assert out["topics"]["expiries"] == "projects/example-project/topics/modelarts-cleanup-expiries"
    assert set(out["subscriptions"]) == {"push", "attention", "dead_letters"}
    assert out["functions"] == {"cleanup": "modelarts-cleanup", "webhook": "modelarts-cleanup-webhook"}
    assert out["webhook_url"].endswith(".run.app")
    assert set(out["identities"]) == {"build", "run", "push", "webhook"}
    assert out["replay_dead_letters"] == f"modelarts-cleanup replay {out['subscriptions']['dead_letters']}"


def test_the_test_expiry_is_another_one_each_time(by_default: Plan, tmp_path: Path) -> None:
    """The ledger answers for one that has ended: a second one would prove nothing of a new key."""
    command = by_default.outputs["send_test_expiry"]
    messages = [published(command, tmp_path / name, clock) for name, clock in (("a", "1"), ("b", "2"))]
    assert {message.pop("cluster_id") for message in messages} == {"no-such-cluster-1", "no-such-cluster-2"}
    assert messages == [{"expires_at": "2020-01-01T00:00:00Z", "project_id": FIVE["allowed_projects"][0]}] * 2


def published(command: str, folder: Path, clock: str) -> dict[str, str]:
    """Run a command as the README says, where `gcloud` writes its arguments down and `date` tells a set time."""
    folder.mkdir()
    for name, does in (("gcloud", 'printf "%s\\n" "$@" >said'), ("date", f"echo {clock}")):
        (folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["/bin/sh", "-c", 'eval "$0"', command], check=True, cwd=folder, env={"PATH": path})
    *words, attribute, message = (folder / "said").read_text().splitlines()
    assert words == ["pubsub", "topics", "publish", "projects/example-project/topics/modelarts-cleanup-expiries"]
    assert attribute == "--attribute=content-type=application/json"
    held: dict[str, str] = json.loads(message.removeprefix("--message="))
    return held


# ---- the module and the code -----------------------------------------------------------------------------------------


def variables() -> set[str]:
    return set(re.findall(r'^variable "(\w+)"', (MODULE / "variables.tf").read_text(), re.MULTILINE))


def test_every_setting_has_a_variable_of_the_same_name() -> None:
    assert {name.lower() for name in settings.NAMES} <= variables()


def test_the_environment_holds_settings_and_nothing_else(full: Plan) -> None:
    webhook = promises.service(full["google_cloudfunctions2_function.webhook[0]"])["environment_variables"]
    own = set(promises.environment(full))
    assert own - promises.TECHNICAL == set(settings.NAMES) - {"EXPIRY_SINK", "WEBHOOK_SECRETS"}
    assert set(webhook) - promises.TECHNICAL == {"EXPIRY_SINK", "WEBHOOK_SECRETS"}


def test_the_code_can_read_what_the_module_writes(by_default: Plan, full: Plan) -> None:
    assert settings.read(promises.environment(by_default)).policy.dry_run
    read = settings.read(promises.environment(full))
    assert not read.policy.dry_run
    assert read.policy.protected_clusters == ("test-golden", "*-keep")
    webhook = promises.service(full["google_cloudfunctions2_function.webhook[0]"])["environment_variables"]
    settings.read_webhook(webhook)


GOOD: dict[str, tuple[str, ...]] = {
    "secret_place": ("secretmanager://projects/p-1/secrets/S_1/versions/latest", "file:///etc/credentials.csv"),
    "ledger_place": (
        *("firestore://projects/p-1/databases/(default)", "firestore://projects/example.com:p/databases/d-1"),
        "sqlite:///var/ledger.db",
    ),
    "sink_place": (
        *("pubsub://projects/p-1/topics/T_1.a~b+c%25", "https://example.com:8443/a?b=c@d", "https://example.com"),
        *("http://localhost:8080/x", "http://[::1]:1/", "file:///var/events.jsonl"),
    ),
    "glob": ("ci-*", "a?c", "[abc]x", "[!a-c]*", "*"),
}
READABLE: dict[str, str] = {
    "MODELARTS_REGION": "cn-southwest-2",
    "ALLOWED_PROJECTS": "p",
    "CREDENTIALS": "file:///a",
    "COMPLETION_SINK": "file:///b",
    "LEDGER": "sqlite:///c",
}
READ: dict[str, Callable[[str], object]] = {
    "secret_place": places.secret,
    "ledger_place": places.ledger,
    "sink_place": places.sink,
    "glob": lambda glob: settings.read({**READABLE, "ALLOWED_NAMES": glob}),
}


def mutants(values: Iterable[str]) -> Iterator[str]:
    """Change good values a little, always in the same ways."""
    chance = random.Random(8)  # noqa: S311 - no secret
    for value in values:
        for _ in range(150):
            at = chance.randrange(len(value) + 1)
            inserted = chance.choice(["", *"/:@?#%[]!*.-_ \n\u00e9\"',0aZ", "//", "%2F", ":99999", "user:pw@"])
            yield value[:at] + inserted + value[at + chance.randrange(3) :]


def can_be_read(read: Callable[[str], object], value: str) -> bool:
    try:
        read(value)
    except ValueError:
        return False
    return True


def test_the_module_takes_nothing_that_the_code_cannot_read(newest: Workbench) -> None:
    asked = {pattern: [*good, *mutants(good)] for pattern, good in GOOD.items()}
    file = newest.folder / "values.json"
    file.write_text(json.dumps(asked))
    tried = ", ".join(f'[for value in local.asked["{name}"] : can(regex(local.{name}, value))]' for name in asked)
    expression = f"jsonencode([{tried}])".replace("local.asked", f'jsondecode(file("{file}"))')
    told = json.loads(json.loads(newest.run("console", "-no-color", said=expression).stdout))
    for (pattern, values), taken in zip(asked.items(), told, strict=True):
        assert all(taken[: len(GOOD[pattern])]), pattern
        assert sum(taken) < len(taken), "some of these are wrong"
        passed = [value for value, yes in zip(values, taken, strict=True) if yes]
        assert [value for value in passed if not can_be_read(READ[pattern], value)] == [], pattern


def test_the_runtime_is_one_that_the_code_supports(minimal: Plan) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"].startswith(">=3.")
    least = int(project["requires-python"].removeprefix(">=3."))
    runtime = promises.cleanup(minimal)["build_config"][0]["runtime"]
    assert runtime in {f"python3{minor}" for minor in (11, 12, 13) if minor >= least}


def test_the_ledgers_fields_are_those_that_the_code_writes(by_default: Plan) -> None:
    client = MagicMock()
    client.collection.return_value.document.side_effect = str
    client.get_all.side_effect = lambda names, **_: [
        SimpleNamespace(id=name, exists=False, update_time=None) for name in names
    ]
    client.batch.return_value.commit.return_value = [SimpleNamespace(update_time=1)]
    store = ledger_firestore.FirestoreStore("p", "d")
    store._made = client  # noqa: SLF001 - the emulator's place is elsewhere; here the names matter
    entry = entries.LimitEntry(forget_at=datetime.now(UTC))
    store.transact(["limit:p"], lambda kept: kept.update({"limit:p": entry}))
    (written,) = [call.args[1] for call in client.batch.return_value.create.call_args_list]
    client.collection.assert_called_with("ledger")
    fields = {values["field"]: values for values in by_default.of("google_firestore_field").values()}
    assert set(fields) == set(written), "what has an index has it for nobody"
    assert isinstance(written[by_default["google_firestore_field.forget_at[0]"]["field"]], datetime)


def test_the_code_never_searches_the_ledger() -> None:
    """What has no index cannot be searched; only what is read by its key needs none."""
    adapter = (MODULE.parent / "function" / "modelarts_cleanup" / "adapters" / "ledger_firestore.py").read_text()
    assert not re.search(r"\.(where|order_by|stream|list_documents|collection_group)\(", adapter)


def test_the_entry_points_are_in_main(with_webhook: Plan) -> None:
    text = (ROOT / "function" / "main.py").read_text()
    for values in with_webhook.of("google_cloudfunctions2_function").values():
        assert re.search(rf"\b{values['build_config'][0]['entry_point']}\b", text)


def logged(folder: Path, capsys: pytest.CaptureFixture[str], *, project: str) -> dict[str, Any]:
    """Send the function an event, and read the line that it logs: nothing answers at its ModelArts."""
    environment = {
        **environment_in(folder, endpoint="http://127.0.0.1:9", credentials='{"access_key":"AK","secret_key":"SK"}'),
        "ALLOWED_PROJECTS": project,
    }
    data = {"project_id": "p1", "cluster_id": "c-1", "expires_at": "2026-07-01T00:00:00Z"}
    headers = {"ce-id": "1", "ce-source": "//test", "ce-type": EXPIRED, "ce-specversion": "1.0"}
    with flask.Flask("test").test_request_context("/", method="POST", json=data, headers=headers):
        app.Cleanup(environment)(flask.request)
    line: dict[str, Any] = json.loads(capsys.readouterr().out)
    return line


def test_metrics_and_alerts_read_what_is_logged(
    by_default: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    retried = logged(tmp_path, capsys, project="p1")
    assert (retried["outcome"], retried["reason"]) == ("retry", "modelarts_unavailable")
    skipped = logged(tmp_path, capsys, project="p2")
    assert (skipped["outcome"], skipped["reason"]) == ("skipped", "project_not_allowed")
    told = json.dumps([*by_default.of("google_logging_metric", "google_monitoring_alert_policy").values()])
    read = set(
        re.findall(r"jsonPayload\.(\w+)", told + by_default["google_monitoring_dashboard.cleanup"]["dashboard_json"])
    )
    assert read == {"outcome", "reason", "cluster_id", "duration_ms"}
    for line in (retried, skipped):
        assert read <= set(line)
        assert isinstance(line["duration_ms"], float)


def filters_in(value: Any) -> Iterator[str]:
    """Find every filter within a dashboard or an alert."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if key == "filter" and inner:
            yield inner
        elif isinstance(inner, dict | list):
            yield from filters_in(inner)


def test_alerts_and_dashboard_name_outcomes_and_reasons_that_there_are(by_default: Plan) -> None:
    alerts = by_default.of("google_monitoring_alert_policy")
    dashboard = json.loads(by_default["google_monitoring_dashboard.cleanup"]["dashboard_json"])
    named: dict[str, set[str]] = {"outcome": set(), "reason": set()}
    for text in (*filters_in(alerts), *filters_in(dashboard)):
        for label, values in re.findall(r'\.(outcome|reason) = ("\w+"|(?:one_of)?\([^)]*\))', text):
            named[label] |= set(re.findall(r'"(\w+)"', values))
    assert named["outcome"] == {"deleted", "already_gone", "skipped", "failed", "rejected", "retry"}
    assert named["reason"] == {"credentials_refused", "credentials_unavailable", "deletion_limit"}
    assert named["reason"] <= set(get_args(model.RetryReason))


# ---- the zip ---------------------------------------------------------------------------------------------------------
#
# What goes in is decided by Terraform itself (`fileset` and `file`), and the plan shows it, byte for byte. Only the
# packing is the stand-in's, which does what the archive provider does with `source` blocks.


def zip_at(bench: Workbench) -> Path:
    return bench.module / "build" / "example-project-modelarts-cleanup.zip"


def test_the_zip(whole: Workbench, by_default: Plan) -> None:
    promises.the_zip_holds_the_function_and_nothing_else(by_default, zip_at(whole), whole.module.parent / "function")
    package = ROOT / "function" / "modelarts_cleanup"
    shipped = {path for path in package.rglob("*") if path.is_file() and package / "local" not in path.parents}
    others = {path.name for path in shipped if path.suffix not in (".py", ".pyc", ".typed")}
    assert not others, "a file that is no Python would have to be named in bundle.tf"
    beside = {path.name for path in (ROOT / "function").iterdir() if not path.name.startswith((".", "__pycache__"))}
    assert beside == {"main.py", "requirements.txt", package.name}, (
        "what is new here would have to be named in bundle.tf"
    )


def test_all_that_is_in_the_zip_can_be_imported_from_it_alone(
    whole: Workbench, by_default: Plan, tmp_path: Path
) -> None:
    assert by_default, "the plan writes the zip"
    with zipfile.ZipFile(zip_at(whole)) as archive:
        archive.extractall(tmp_path)
        files = [name.removesuffix(".py") for name in archive.namelist() if name.endswith(".py")]
    modules = [name.removesuffix("/__init__").replace("/", ".") for name in files]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    print(importlib.import_module(name).__file__)\n"
        "assert not [name for name in sys.modules if name.startswith('modelarts_cleanup.local')]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *modules],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert all(Path(line).is_relative_to(tmp_path) for line in done.stdout.splitlines())


def test_the_zip_of_the_gcloud_commands_holds_the_same(whole: Workbench, by_default: Plan, tmp_path: Path) -> None:
    if shutil.which("zip") is None:
        pytest.skip("zip is not installed")
    command = re.search(r"^\(cd function && zip .*?\)$", gcloud(by_default), re.MULTILINE | re.DOTALL)
    assert command
    tree = tmp_path / "tree"
    shutil.copytree(whole.module.parent / "function", tree / "function")
    (tree / "function" / ".env").write_text("planted")
    (tree / "function" / "modelarts_cleanup" / "credentials.csv").write_text("planted")
    subprocess.run(["/bin/sh", "-c", command[0]], check=True, cwd=tree)
    with zipfile.ZipFile(tree / "function.zip") as made_by_hand, zipfile.ZipFile(zip_at(whole)) as archive:
        files = {name: made_by_hand.read(name) for name in made_by_hand.namelist() if not name.endswith("/")}
        assert files == {name: archive.read(name) for name in archive.namelist()}


def test_the_zip_is_the_same_from_a_dirty_tree_and_leaves_all_of_it_out(whole: Workbench, by_default: Plan) -> None:
    function = whole.module.parent / "function"
    before = hashlib.sha256(zip_at(whole).read_bytes()).hexdigest()
    dirt = [
        ".env",
        "credentials.csv",
        "credentials.json",
        "service-account.key",
        "modelarts_cleanup/key.pem",
        "modelarts_cleanup/.hidden/secret.py",
        "modelarts_cleanup/__pycache__/model.cpython-311.pyc",
        "modelarts_cleanup/__pycache__/secret.py",
        "modelarts_cleanup/adapters/credentials.csv",
        "modelarts_cleanup/local/more.py",
        "tests/test_it.py",
        ".venv/lib/python3.11/site-packages/thing.py",
    ]
    planted = [function / name for name in dirt]
    touched = function / "requirements.txt"
    mode = touched.stat().st_mode
    try:
        for path in planted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("AKIDPLANTED = 1\n")
        touched.chmod(0o600)
        touched.touch()
        again = whole.plan(FIVE)
    finally:
        touched.chmod(mode)
        for path in planted:
            path.unlink()
    assert hashlib.sha256(zip_at(whole).read_bytes()).hexdigest() == before
    held, known = (plan["google_storage_bucket_object.bundle"]["name"] for plan in (again, by_default))
    assert held == known
    assert "AKIDPLANTED" not in again.everything()


# ---- refusals --------------------------------------------------------------------------------------------------------

BAD: list[dict[str, Any]] = [
    {
        "alert_channels": ["ops@example.com"],
        "allowed_names": [],
        "allowed_projects": [],
        "completion_sink": "https://user:HUNTER2@example.com/",
        "deletions_per_hour": -1,
        "expiry_sink": "http://example.com/",
        "labels": {"Team": "x"},
        "ledger": "redis://localhost",
        "max_instances": 0,
        "modelarts_endpoint": "https://modelarts.example.com",
        "modelarts_region": "europe-west1",
        "name": "Cleanup",
        "project_id": "123456",
        "protected_clusters": ["a,b"],
        "region": "cn-southwest-2",
        "vpc_egress": "my-connector",
    },
    {
        "allowed_names": ["grüne-*"],
        "name": "google-cleanup",
        "protected_clusters": ["a" * 65],
        "allowed_projects": ["*"],
        "credentials_version": "a version",
        "deletions_per_hour": 1.5,
        "kms_key": "my-key",
        "min_instances": 9,
        "modelarts_endpoint": "http://modelarts.cn-southwest-2.myhuaweicloud.com",
    },
    {"credentials": PASTED[1], "webhook_secrets": PASTED[0]},
    {"credentials": "", "webhook_secrets": ""},
    {"allowed_names": ["[a"], "name": "cleanup-webhook", "ledger": "firestore://projects/a.b/databases/d"},
]


@pytest.mark.parametrize("bad", BAD, ids=["wrong", "not quite right", "pasted", "empty", "odd"])
def test_bad_values_are_refused_by_name_and_no_secret_is_shown(newest: Workbench, bad: dict[str, Any]) -> None:
    said = newest.refusal({**FIVE, "webhook_enabled": True, **bad})
    for name in bad:
        assert re.search(rf"(?<![\w.]){name}: ", said), f"nothing is said about {name}"
    for secret in ("a2V5a2V5", "AKIDPASTED", "SKPASTED"):
        assert secret not in said


@pytest.mark.parametrize("other", [{"name": "Cleanup"}, {"alert_channels": ["ops"]}, {"vpc_egress": "mine"}])
def test_a_pasted_secret_is_not_shown_beside_another_mistake(newest: Workbench, other: dict[str, Any]) -> None:
    """Terraform prints the part of a plan that it could make, before it tells what was wrong."""
    pasted = {"webhook_enabled": True, "credentials": PASTED[1], "webhook_secrets": PASTED[0]}
    said = newest.refusal({**FIVE, **pasted, **other})
    for secret in ("a2V5a2V5", "AKIDPASTED", "SKPASTED"):
        assert secret not in said


def test_null_is_refused_where_a_value_is_due(newest: Workbench) -> None:
    due = ("allowed_names", "allowed_projects", "modelarts_region", "project_id", "region")
    said = newest.refusal({**FIVE, **dict.fromkeys(due)})
    assert {name for name in due if name in said} == set(due)


def test_the_modules_own_rules_pass(newest: Workbench) -> None:
    assert "0 failed" in newest.run("test", "-no-color").stdout


# ---- planted mistakes ------------------------------------------------------------------------------------------------

PLANTED = [
    pytest.param(
        "function.tf",
        r'ingress_settings += "ALLOW_INTERNAL_ONLY"',
        'ingress_settings = "ALLOW_ALL"',
        promises.only_the_webhook_is_public,
        id="public function",
    ),
    pytest.param(
        "trigger.tf",
        r"member +=( google_service_account.push.member)",
        'member = "allUsers"',
        promises.only_the_webhook_is_public,
        id="public invoker",
    ),
    pytest.param(
        "dead-letter.tf",
        r'resource "google_pubsub_subscription_iam_member" "dead_letters_leave" \{.*?\n\}\n',
        "",
        promises.dead_letters_are_kept_and_pubsub_may_move_them,
        id="missing dead-letter grant",
    ),
    pytest.param(
        "bundle.tf",
        r"function-\$\{[^}]*\}\.zip",
        "function-latest.zip",
        promises.the_source_is_named_by_its_hash,
        id="latest where a pin is due",
    ),
    pytest.param(
        "ledger.tf",
        r"roles/datastore\.user",
        "roles/datastore.owner",
        promises.every_identity_has_exactly_these_rights,
        id="wide role",
    ),
    pytest.param(
        "ledger.tf",
        r"  condition \{.*?\n  \}\n",
        "",
        promises.every_identity_has_exactly_these_rights,
        id="role on every database",
    ),
    pytest.param(
        "ledger.tf",
        r'(resource "google_firestore_field" "entry" \{.*?)  index_config \{\}\n',
        r"\1",
        promises.the_ledger_is_protected_and_forgets,
        id="an index that every delivery writes",
    ),
    pytest.param(
        "function.tf",
        r"timeout_seconds( +)= 540",
        r"timeout_seconds = 600",
        promises.the_function_is_internal_and_answers_in_time,
        id="timeout not below the deadline",
    ),
    pytest.param(
        "variables.tf",
        r'(variable "dry_run" \{.*?default +=) true',
        r"\1 false",
        promises.everything_dangerous_is_off,
        id="dry run off",
    ),
]


@pytest.fixture
def altered(newest: Workbench) -> Iterator[Callable[[str, str, str], Plan]]:
    kept: dict[Path, str] = {}

    def alter(name: str, pattern: str, replacement: str) -> Plan:
        path = newest.module / name
        kept[path] = path.read_text()
        text, times = re.subn(pattern, replacement, kept[path], count=1, flags=re.DOTALL)
        assert times == 1
        path.write_text(text)
        return newest.plan(FIVE)

    yield alter
    for path, text in kept.items():
        path.write_text(text)


@pytest.mark.parametrize(("name", "pattern", "replacement", "check"), PLANTED)
def test_a_planted_mistake_is_found(
    altered: Callable[[str, str, str], Plan],
    name: str,
    pattern: str,
    replacement: str,
    check: Callable[[Plan], None],
) -> None:
    plan = altered(name, pattern, replacement)
    with pytest.raises((AssertionError, KeyError)):
        check(plan)


# ---- how it is written -----------------------------------------------------------------------------------------------


def sources() -> dict[str, str]:
    return {path.name: path.read_text() for path in MODULE.glob("*.tf")}


def test_the_sources_are_formatted() -> None:
    if shutil.which("terraform") is None:
        pytest.skip("terraform is not installed")
    command = ["terraform", f"-chdir={MODULE}", "fmt", "-check", "-recursive"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_files_are_named_by_what_they_hold() -> None:
    assert {"bundle.tf", "completion.tf", "credentials.tf", "dead-letter.tf", "function.tf", "ledger.tf"} <= set(
        sources()
    )
    assert {"monitoring.tf", "outputs.tf", "trigger.tf", "variables.tf", "versions.tf", "webhook.tf"} <= set(sources())
    assert not {"main.tf", "iam.tf", "locals.tf"} & set(sources())


def test_every_variable_and_output_is_typed_and_described() -> None:
    for name, body in re.findall(
        r'^variable "(\w+)" \{\n(.*?)^\}', sources()["variables.tf"], re.MULTILINE | re.DOTALL
    ):
        assert re.search(r"^  description = \".{10,}\"", body, re.MULTILINE), name
        assert re.search(r"^  type +=", body, re.MULTILINE), name
        messages = re.findall(r'error_message = "(\w+):', body)
        assert set(messages) <= {name}, f"{name}: a message names another variable"
        if not re.search(
            r"^  type +=\s+bool|^  sensitive ", body, re.MULTILINE
        ):  # function.tf checks the sensitive two
            assert messages, f"{name} takes any value"
    for name, body in re.findall(r'^output "(\w+)" \{\n(.*?)^\}', sources()["outputs.tf"], re.MULTILINE | re.DOTALL):
        assert "description = " in body, name


def test_the_providers_tested_are_the_ends_of_what_is_admitted() -> None:
    admitted = re.search(r'"hashicorp/google"\n +version = ">= (\d+)\.(\d+), < (\d+)\.0"', sources()["versions.tf"])
    assert admitted
    tested = sorted(tuple(map(int, version.split(".")[:2])) for version in GOOGLE)
    assert tested[0] == (int(admitted[1]), int(admitted[2]))
    assert {major for major, _ in tested} == set(range(int(admitted[1]), int(admitted[3])))


def test_no_secret_value_can_pass_through() -> None:
    text = "".join(sources().values())
    assert not re.search(r'"google_secret_manager_secret_version|"google_service_account_key|secret_data', text)


def test_data_sources_are_read_only_where_nothing_can_be_referenced() -> None:
    data = re.findall(r'^data "(\w+)"', "".join(sources().values()), re.MULTILINE)
    assert sorted(data) == ["archive_file", "google_storage_project_service_account"]


# ---- what the README says --------------------------------------------------------------------------------------------


def block(marker: str) -> str:
    """Give what stands between two markers, without the fence of a code block."""
    found = re.search(rf"<!-- {marker} -->\n(.*?)<!-- /{marker} -->", README.read_text(), re.DOTALL)
    assert found, f"README.md has no block {marker}"
    return re.sub(r"^```\w*\n|^```$", "", found[1].strip(), flags=re.MULTILINE).strip()


def test_the_readme_lists_what_is_made(by_default: Plan) -> None:
    assert block("creates") == made(by_default)


def test_the_readme_lists_every_right(with_webhook: Plan) -> None:
    assert block("rights") == rights_table(with_webhook)


def test_the_readme_reckons_the_costs_of_what_is_made(by_default: Plan) -> None:
    assert block("costs") == costs(by_default)


def test_a_plan_of_what_the_readme_says_to_write(newest: Workbench, by_default: Plan) -> None:
    told = re.search(r"cat >infra/terraform\.tfvars <<'END'\n(.*?)^END$", README.read_text(), re.DOTALL | re.MULTILINE)
    assert told
    file = newest.module / "terraform.tfvars"
    file.write_text(told[1].replace("MODELARTS_PROJECT_ID", "0").replace("PROJECT", "example-project"))
    try:
        plan = newest.plan({})
    finally:
        file.unlink()
    assert set(plan.resources) == set(by_default.resources)
    assert promises.environment(plan)["DRY_RUN"] == "true"


def test_the_readme_has_the_same_in_gcloud(by_default: Plan) -> None:
    assert block("gcloud") == gcloud(by_default)


def test_gcloud_leaves_nothing_out_but_the_monitoring(by_default: Plan) -> None:
    kinds = {item["type"] for item in by_default.resources.values()} - {"google_project_service"}
    assert kinds - set(WRITERS) <= LEFT_OUT


def told_to_type(plan: Plan) -> list[str]:
    """List every gcloud command of the README, the alerts and the outputs."""
    readme = README.read_text()
    alerts = [values["documentation"][0]["content"] for values in plan.of("google_monitoring_alert_policy").values()]
    fenced = re.compile(r"```sh\n(.*?)```", re.DOTALL)
    lines = [line for block in fenced.findall(readme) for line in block.replace("\\\n", " ").splitlines()]
    inline = [span for text in (fenced.sub("", readme), *alerts) for span in re.findall(r"`([^`\n]+)`", text)]
    spans = [part for span in (*lines, *inline, plan.outputs["send_test_expiry"]) for part in re.split("&&|;", span)]
    found = [re.search(r"(?<![\w.-])gcloud [a-z][^#]*", span) for span in spans]
    commands = {re.sub(r'\)"$', "", " ".join(match[0].split())) for match in found if match}
    return sorted(re.sub(r"\bPROJECT\b(?!=)", "example-project", command) for command in commands)


def test_gcloud_understands_every_command_that_we_tell(by_default: Plan, tmp_path: Path) -> None:
    if shutil.which("gcloud") is None:
        pytest.skip("gcloud is not installed")
    commands = told_to_type(by_default)
    assert len(commands) > 40
    asked = tmp_path / "commands.json"
    asked.write_text(json.dumps([{"command_string": command} for command in commands]))
    environment = {**os.environ, "CLOUDSDK_CONFIG": str(tmp_path / "config")}
    done = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={asked}"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode:
        pytest.skip("this gcloud cannot check commands")
    answers = json.loads(done.stdout)
    assert len(answers) == len(commands)
    assert [answer["error_message"] for answer in answers if not answer["success"]] == []


def test_the_readme_names_every_variable() -> None:
    text = README.read_text()
    assert not {name for name in variables() if f"`{name}`" not in text and f"`{name.upper()}`" not in text}


def main() -> None:
    """Print the blocks of the README as they should be: `python -m test_infra`."""
    bench = workbench(Path(sys.argv[1]), NEWEST, whole=True)
    plain, webhook = bench.plan(FIVE), bench.plan({**FIVE, "webhook_enabled": True})
    bench.close()
    blocks = {
        "creates": made(plain),
        "costs": costs(plain),
        "rights": rights_table(webhook),
        "gcloud": gcloud(plain),
    }
    for marker, text in blocks.items():
        fenced = f"```sh\n{text}\n```" if marker == "gcloud" else text
        sys.stdout.write(f"<!-- {marker} -->\n{fenced}\n<!-- /{marker} -->\n\n")


if __name__ == "__main__":
    main()
