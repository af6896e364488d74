"""README, code and CI name the same settings, outcomes, reasons, dependencies and commands."""

import json
import re
import subprocess
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import docs
import pytest
from modelarts_cleanup import deadline, expiry, ledger, model, settings
from served import Served

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def ticked(cells: Iterable[str]) -> list[str]:
    """Give what stands in backticks."""
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def rows(name: str) -> list[list[str]]:
    lines = docs.block(README, name).splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_fault_table_of_the_readme_is_the_one_that_is_tested() -> None:
    assert docs.written(README) == README, "run tests/docs.py"


def test_the_readme_explains_every_outcome_and_every_reason() -> None:
    outcomes = set(ticked(row[0] for row in rows("reasons")))
    reasons = set(ticked(row[1] for row in rows("reasons")))
    assert outcomes == {"deleted", "already_gone", "skipped", "failed", "rejected"}
    assert reasons == {*get_args(model.SkipReason), *get_args(model.FailReason), "invalid_event"}
    assert set(ticked(row[0] for row in rows("retries"))) == set(get_args(model.RetryReason))


def test_the_readme_lists_the_settings_of_the_code_in_their_order() -> None:
    assert tuple(ticked(row[0] for row in rows("settings"))) == settings.NAMES


@pytest.mark.parametrize("name", settings.NAMES)
def test_the_default_that_the_readme_tells_is_the_one_that_is_used(name: str) -> None:
    required = {
        "MODELARTS_REGION": "cn-southwest-2",
        "ALLOWED_PROJECTS": "p1",
        "ALLOWED_NAMES": "ci-*",
        "CREDENTIALS": "file:///k",
        "COMPLETION_SINK": "file:///c",
        "LEDGER": "sqlite:///l",
    }
    told = dict(
        zip((ticked([row[0]])[0] for row in rows("settings")), (row[1] for row in rows("settings")), strict=True)
    )
    if name in required:
        assert told[name] == "required"
        with pytest.raises(settings.SettingsError) as raised:
            settings.read({key: value for key, value in required.items() if key != name})
        assert raised.value.problems == (f"{name} is not set",)
    elif told[name] == "for `webhook`":
        with pytest.raises(settings.SettingsError) as raised:
            settings.read_webhook({})
        assert f"{name} is not set" in raised.value.problems
    else:
        default = "" if told[name] == "empty" else ticked([told[name]])[0].replace("{region}", "cn-southwest-2")
        assert settings.read(required) == settings.read({**required, name: default})


def test_every_dependency_is_justified_in_the_readme() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["local"]]
    assert set(ticked(row[0] for row in rows("dependencies"))) == {re.split(r"[\[><=]", name)[0] for name in declared}


def test_ci_runs_the_test_command_of_the_readme() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    command = next(line for line in README.splitlines() if line.endswith("pytest --cov"))
    for part in command.split(" && "):
        words = [word for word in part.replace(".venv/bin/", "").split() if word not in ("-q", "-e")]
        assert " ".join(words) in re.sub(
            r" --(quiet|disable-pip-version-check|editable)", "", ci.replace(".venv/bin/", "")
        )


def test_the_curl_example_works_as_printed(tmp_path: Path) -> None:
    secret = re.search(r"whsec_\S+", docs.block(README, "serve-webhook"))
    assert secret
    (tmp_path / "secrets").write_text(secret[0])
    given = {"EXPIRY_SINK": f"file://{tmp_path}/expiries.jsonl", "WEBHOOK_SECRETS": f"file://{tmp_path}/secrets"}
    script = docs.block(README, "curl").removeprefix("```sh\n").removesuffix("```\n")
    assert "http://127.0.0.1:8080/" in script
    with Served(given, target="webhook") as served:
        script = script.replace("http://127.0.0.1:8080", served.url)
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], check=True, capture_output=True, text=True)
    stored = json.loads((tmp_path / "expiries.jsonl").read_text())
    assert json.loads(done.stdout) == {"id": stored["id"]}
    assert stored["source"] == "//modelarts-cleanup/webhook"
    assert stored["data"]["cluster_id"] == "c-1"


def test_the_readme_tells_the_figures_of_the_code() -> None:
    assert f"{expiry.MAXIMUM.days} days" in README
    assert f"before the year {expiry.EARLIEST.year}" in README
    assert f"after {ledger.LEASE.total_seconds():.0f} s" in README
    assert deadline.ANSWERING.total_seconds() < 60
    assert "within 60 s" in README


def test_every_link_inside_the_project_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
