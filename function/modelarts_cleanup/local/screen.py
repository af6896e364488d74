"""Shows things to a person: tables and colours on a terminal, plain text anywhere else, JSON for machines."""

import json
from typing import Final

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Where nobody says how wide it is, as in a file or a pipe.
_WIDTH: Final = 140
_STYLES: Final = {
    "deleted": "green",
    "already_gone": "cyan",
    "skipped": "blue",
    "failed": "bold red",
    "rejected": "magenta",
    "retry": "yellow",
    "ok": "green",
    "wrong": "bold red",
    "objects": "yellow",
    "passes": "green",
    "open": "dim",
    "sent": "green",
    "already": "cyan",
    "useless": "yellow",
    "unusable": "magenta",
}


class CommandError(click.ClickException):
    """A command cannot do what it was asked, and says why; it ends with 2."""

    exit_code = 2


def screen() -> Console:
    """Give the terminal, with colours only if it is one and `NO_COLOR` is not set."""
    found = Console(highlight=False, emoji=False, markup=False, soft_wrap=False)
    if not found.is_terminal:
        found.width = _WIDTH
    return found


def plain(value: object) -> str:
    """Write a value without anything that a terminal would obey; an event could hold it."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(value))


def cell(value: object, style: str = "") -> Text:
    """Make a cell of a table; nothing in it is markup."""
    return Text("-" if value is None else plain(value), style=style)


def word(outcome: object, reason: object = None) -> Text:
    """Write an outcome, or a state, in its colour, with its reason."""
    text = plain(outcome) + (f" {plain(reason)}" if reason else "")
    return Text(text, style=_STYLES.get(str(outcome), ""))


def table(*columns: str) -> Table:
    """Begin a table."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        made.add_column(name, overflow="fold")
    return made


def show(on: Console, title: str, rows: Table) -> None:
    """Show a table under its title."""
    on.print(Text(title, style="bold"))
    on.print(rows)


def write_json(content: object) -> None:
    """Write one JSON document on one line, for machines."""
    click.echo(json.dumps(content, ensure_ascii=False))
