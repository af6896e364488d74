"""What is deployed beside our own code: pinned, hashed, licensed, listed, and without known holes."""

import importlib.util
import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from infra.workbench import MODULE, ROOT

REQUIREMENTS = ROOT / "function" / "requirements.txt"
LICENCES = MODULE / "licences.md"
# What a licence must be, so that the function may be deployed by anyone who has it.
ALLOWED = {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "MIT", "MIT-0", "MPL-2.0", "PSF-2.0", "ISC"}

# What the packages that don't use the standard's names say of themselves.
SPELLINGS = {
    "Apache 2": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "BSD": "BSD-3-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}


def pinned() -> dict[str, str]:
    text = REQUIREMENTS.read_text()
    return dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(\S+)", text, re.MULTILINE))


def licence(name: str) -> str | None:
    """Say what licence an installed package names itself; None where it is not for this platform."""
    try:
        about = metadata(name)
    except PackageNotFoundError:
        return None
    classified = [
        line.rsplit(" :: ", 1)[1] for line in about.get_all("Classifier", []) if line.startswith("License :: ")
    ]
    told = [*about.get_all("License-Expression", []), *about.get_all("License", []), *classified]
    words = [word.strip() for word in told if "\n" not in word.strip() and word.strip() != "UNKNOWN"]
    known = [SPELLINGS.get(word, word) for word in words]
    return next((word for word in known if set(re.split(r" (?:AND|OR) ", word)) <= ALLOWED), words[0] if words else "?")


def listed() -> dict[str, str]:
    rows = LICENCES.read_text().partition("|---|---|")[2]
    return dict(re.findall(r"^\| ([a-z0-9._-]+) \| (.+?) \|$", rows, re.MULTILINE))


def test_every_requirement_is_one_version_with_hashes() -> None:
    text = re.sub(r"\s*#.*", "", REQUIREMENTS.read_text()).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == len(pinned()) > 20
    for line in lines:
        assert re.match(r"[A-Za-z0-9._-]+==\S+.* --hash=sha256:[0-9a-f]{64}", line), line[:80]


def test_every_licence_is_listed_and_allowed() -> None:
    assert set(listed()) == set(pinned())
    for name, word in listed().items():
        assert set(re.split(r" (?:AND|OR) ", word)) <= ALLOWED, f"{name}: {word}"
        assert licence(name) in (None, word), name


def test_the_bill_of_materials_lists_every_requirement(tmp_path: Path) -> None:
    if importlib.util.find_spec("cyclonedx_py") is None:
        pytest.skip("cyclonedx-bom is not installed")
    out = tmp_path / "sbom.json"
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", str(REQUIREMENTS), "--output-file", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    components = {part["name"]: part for part in json.loads(out.read_text())["components"]}
    assert {name: part["version"] for name, part in components.items()} == pinned()
    assert all(part.get("externalReferences") for part in components.values())


def test_no_vulnerability_is_known() -> None:
    if importlib.util.find_spec("pip_audit") is None:
        pytest.skip("pip-audit is not installed")
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(REQUIREMENTS), "--no-deps", "--disable-pip"]
    done = subprocess.run(
        [*command, "--format=json", "--progress-spinner=off", "--timeout=5"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if not done.stdout.strip():
        pytest.skip("no database of vulnerabilities can be reached")
    held = json.loads(done.stdout)["dependencies"]
    if any("could not be audited" in item.get("skip_reason", "") for item in held):
        pytest.skip("the database at hand does not know the packages")
    assert not {item["name"]: item["vulns"] for item in held if item.get("vulns")}


def main() -> None:
    """Print the table of licences as it should be: `python -m infra.test_supply_chain`."""
    rows = [f"| {name} | {licence(name) or 'look it up: not for this platform'} |" for name in sorted(pinned())]
    sys.stdout.write("\n".join(["| package | licence |", "|---|---|", *rows, ""]))


if __name__ == "__main__":
    main()
