"""Changes the rooms that decide, bit by bit, and fails if no test notices: `python tests/mutation.py`."""

# ruff: noqa: T201 - a command prints
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("guard", "expiry", "events", "fields", "signing")

# A change that no test can notice, by its function and the line that it makes, with the reason.
EQUIVALENT = {
    (
        "modelarts_cleanup.expiry.x_instant",
        "if int(hours or 1) > _LAST_HOUR or int(minutes or 0) > _LAST_MINUTE:",
    ): "without an offset, 1 is no more above the last hour than 0 is",
    (
        "modelarts_cleanup.expiry.x_instant",
        "if int(hours or 0) > _LAST_HOUR or int(minutes or 1) > _LAST_MINUTE:",
    ): "without an offset, 1 is no more above the last minute than 0 is",
    (
        "modelarts_cleanup.expiry.x_instant",
        'micro = int((fraction or "").ljust(7, "0")[:6])',
    ): "a seventh digit is cut off again",
    (
        "modelarts_cleanup.signing.x__canonical_path",
        "quoted = quote(unquote(path), )",
    ): "a slash is safe by default, and a tilde is never quoted",
    (
        "modelarts_cleanup.signing.x__canonical_path",
        'quoted = quote(unquote(path), safe="XX~/XX")',
    ): "a letter is never quoted",
    (
        "modelarts_cleanup.signing.x__canonical_query",
        "return \"&\".join(f\"{quote(name, safe='XX~XX')}={quote(value, safe='~')}\" for name, value in sorted(query))",
    ): "a letter is never quoted",
    (
        "modelarts_cleanup.signing.x__canonical_query",
        "return \"&\".join(f\"{quote(name, safe='~')}={quote(value, safe='XX~XX')}\" for name, value in sorted(query))",
    ): "a letter is never quoted",
    (
        "modelarts_cleanup.events.x_completion_event",
        'data=json.dumps(data, ensure_ascii=None, separators=(",", ":")),',
    ): "None is as false as False",
    (
        "modelarts_cleanup.events.x_structured",
        'return json.dumps(event, ensure_ascii=None, separators=(",", ":"))',
    ): "None is as false as False",
    (
        "modelarts_cleanup.events.x__told",
        'told = {"members": [msgspec.structs.asdict(member) for member in members]} if members else {}',
    ): "nothing was told before",
    (
        "modelarts_cleanup.events.x__told",
        'told = {"field": field, "problem": problem, "original": kept}',
    ): "nothing was told before",
    ("modelarts_cleanup.events.x__told", "assert_never(None)"): "no outcome comes so far",
}

# mutmut understands only a few roots, and `function/` is none of them: the rooms are tried in a copy.
CONFIG = f"""
[tool.mutmut]
source_paths = ["src"]
only_mutate = {[f"src/modelarts_cleanup/{room}.py" for room in ROOMS]}
pytest_add_cli_args = ["-p", "no:randomly", "-p", "no:cacheprovider", "--hypothesis-profile=mutation", "--tb=no"]
pytest_add_cli_args_test_selection = ["tests"]
use_setproctitle = false

[tool.pytest]
pythonpath = ["tests"]
filterwarnings = ["error"]
addopts = ["--import-mode=importlib"]
"""


def main() -> int:
    """Print what survives, and answer with the exit code."""
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        _copy(scratch)
        run = _mutmut(scratch, "run", "--max-children", str(os.cpu_count() or 1))
        if run.returncode:
            print(run.stdout[-4000:], run.stderr[-4000:])
            return run.returncode
        found = dict(_results(scratch))
        explained: set[tuple[str, str]] = set()
        missed = 0
        for name, status in found.items():
            if status in ("killed", "timeout"):
                continue
            change = _mutmut(scratch, "show", name).stdout
            key = (name.partition("__mutmut_")[0], _line(change))
            if key in EQUIVALENT:
                explained.add(key)
            else:
                missed += 1
                print(f"{name}: {status}\n{change}")
    for function, line in EQUIVALENT.keys() - explained:
        print(f"explained, but nothing of the kind survives any more: {function}: {line}")
    print(f"{len(found)} changes: {dict(Counter(found.values()))}, {len(explained)} explained, {missed} missed")
    return 1 if missed or not found or EQUIVALENT.keys() - explained else 0


def _copy(scratch: Path) -> None:
    leave = shutil.ignore_patterns("local", "__pycache__")
    shutil.copytree(ROOT / "function" / "modelarts_cleanup", scratch / "src" / "modelarts_cleanup", ignore=leave)
    tests = scratch / "tests"
    shutil.copytree(ROOT / "tests" / "data", tests / "data")
    for name in ("conftest", "fakes", *(f"test_{room}" for room in ROOMS)):
        shutil.copy(ROOT / "tests" / f"{name}.py", tests)
    (scratch / "pyproject.toml").write_text(CONFIG)


def _mutmut(scratch: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mutmut", *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    return subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True, check=False)


def _results(scratch: Path) -> Iterator[tuple[str, str]]:
    for line in _mutmut(scratch, "results", "--all", "true").stdout.splitlines():
        name, _, status = line.strip().partition(": ")
        yield name, status


def _line(change: str) -> str:
    """Take the line that a change makes out of its diff."""
    return " ".join(line[1:].strip() for line in change.splitlines() if line.startswith("+") and line[1:2] != "+")


if __name__ == "__main__":
    sys.exit(main())
