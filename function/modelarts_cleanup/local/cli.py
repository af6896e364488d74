"""Starts the commands, or says what they need to start."""

import sys


def main() -> None:
    """Run `modelarts-cleanup`."""
    try:
        from modelarts_cleanup.local.commands import commands  # noqa: PLC0415 - what it needs is optional
    except ModuleNotFoundError as error:
        sys.stderr.write(f"The commands need {error.name}: pip install 'modelarts-cleanup[local]'\n")
        sys.exit(2)
    commands()
