"""Writes the blocks of the README that are made from code: `python tests/docs.py`."""

import re
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "bench"))

import reach
import test_crash_google
import test_faults
import test_faults_google
from test_crash import STEPS

# What a killed process answers, and what it leaves.
KILLED = "none; 503 `in_progress` while its lease lives | as far as it came"
README = Path(__file__).parent.parent / "README.md"


def block(text: str, name: str) -> str:
    """Give what stands between the marks of a block."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    assert found, f"the README has no block {name}"
    return found[1]


def fault_table() -> str:
    """Show the rows of the fault table, and where processes are killed."""
    killed = "; ".join([*(step[0] for step in STEPS), "while it publishes, before or after it is stored"])
    kill = f"| `kill -9` | {killed} | {KILLED} | 1 | `deleted` |"
    return _table(["DELETEs"], test_faults.ROWS, [kill])


def google_fault_table() -> str:
    """Show the same of the rows with Google's parts."""

    def counts(one: test_crash_google.Killed) -> tuple[int, int]:
        return one.deletes, one.told

    kills = [
        f"| `kill -9` | {'; '.join(one.name for one in same)} | {KILLED} | {deletes} | {test_faults_google.told(told)} "
        "| `deleted` |"
        for (deletes, told), same in groupby(sorted(test_crash_google.KILLED, key=counts), key=counts)
    ]
    return _table(["DELETEs", "completion events"], test_faults_google.ROWS, kills)


def _table(counted: Sequence[str], rows: Sequence[test_faults.Row[Any]], more: Iterable[str]) -> str:
    """Show rows, those together that end alike."""

    def ends(row: test_faults.Row[Any]) -> tuple[str, ...]:
        step, _fault, *rest = row.cells
        return step, *rest

    columns = ["step", "fault", "answer", "stands in the ledger", *counted, "ends as"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    steps = list(dict.fromkeys(row.step for row in rows))
    for (step, *rest), same in groupby(sorted(rows, key=lambda row: (steps.index(row.step), ends(row))), key=ends):
        faults = "; ".join(row.fault for row in same)
        lines.append(f"| {step} | {faults} | {' | '.join(rest)} |")
    return "\n".join([*lines, *more]) + "\n"


def reach_table() -> str:
    """Show what rates of expiries ask for, by what one expiry takes."""
    return reach.table(reach.MEASURED)


MADE = {"faults": fault_table, "faults-google": google_fault_table, "reach": reach_table}


def written(text: str) -> str:
    """Give the README with its made blocks made afresh."""
    for name, make in MADE.items():
        opening, closing = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        text = text.replace(opening + block(text, name) + closing, opening + make() + closing)
    return text


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
