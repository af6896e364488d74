"""Writes the blocks of the README that are made from code: `python tests/docs.py`."""

import re
from itertools import groupby
from pathlib import Path

from test_crash import STEPS
from test_faults import ROWS, Row

README = Path(__file__).parent.parent / "README.md"


def block(text: str, name: str) -> str:
    """Give what stands between the marks of a block."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    assert found, f"the README has no block {name}"
    return found[1]


def fault_table() -> str:
    """Show the rows of the fault table, those together that end alike."""

    def ends(row: Row) -> tuple[str, ...]:
        step, _fault, *rest = row.cells
        return step, *rest

    lines = [
        "| step | fault | answer | stands in the ledger | DELETEs | ends as |",
        "|---|---|---|---|---|---|",
    ]
    steps = list(dict.fromkeys(row.step for row in ROWS))
    for (step, *rest), rows in groupby(sorted(ROWS, key=lambda row: (steps.index(row.step), ends(row))), key=ends):
        faults = "; ".join(row.fault for row in rows)
        lines.append(f"| {step} | {faults} | {' | '.join(rest)} |")
    killed = "; ".join([*(step[0] for step in STEPS), "while it publishes, before or after it is stored"])
    lines.append(
        f"| `kill -9` | {killed} | none; 503 `in_progress` while its lease lives | as far as it came | 1 | `deleted` |"
    )
    return "\n".join(lines) + "\n"


def written(text: str) -> str:
    """Give the README with its made blocks made afresh."""
    return text.replace(block(text, "faults"), "", 1).replace(
        "<!-- faults -->\n", f"<!-- faults -->\n{fault_table()}", 1
    )


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
