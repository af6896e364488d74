"""Google's parts for the benchmark: both emulators, and a Secret Manager over TLS."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import emulators
import pytest
from measured import KEYS, embedded
from modelarts_cleanup.adapters.ledger_firestore import FirestoreStore


@dataclass(frozen=True)
class Parts:
    """What runs, and the settings that lead there."""

    project: str
    environment: dict[str, str]

    def settings(self, endpoint: str, place: Path, only: str | None = None) -> dict[str, str]:
        """Give the settings of the function in production, or with `only` one of the three of Google's."""
        google = {
            "CREDENTIALS": f"secretmanager://projects/{self.project}/secrets/s/versions/1",
            "COMPLETION_SINK": f"pubsub://projects/{self.project}/topics/completions",
            "LEDGER": f"firestore://projects/{self.project}/databases/(default)",
        }
        chosen = google if only is None else {only: google[only]}
        return {**embedded(endpoint, place, **chosen), **self.environment}

    def peer(self, endpoint: str, place: Path) -> dict[str, str]:
        """Give what the peer needs, its home too: the vendor's SDK writes there."""
        return {
            "MODELARTS_ENDPOINT": endpoint,
            "SECRET": f"projects/{self.project}/secrets/s/versions/1",
            "TOPIC": f"projects/{self.project}/topics/completions",
            "HOME": str(place),
            **self.environment,
        }


@contextmanager
def parts() -> Iterator[Parts | None]:
    """Start Google's parts; None where an emulator is missing."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory()))
        try:
            jars = emulators.jar(*emulators.PUBSUB), emulators.jar(*emulators.FIRESTORE)
            pubsub = stack.enter_context(emulators.running(["-jar", jars[0]], log=place / "pubsub"))
            command = ["-cp", jars[1], emulators.FIRESTORE_MAIN, "start"]
            firestore = stack.enter_context(emulators.running(command, log=place / "firestore"))
        except pytest.skip.Exception as missing:
            sys.stderr.write(f"Without Google's parts: {missing}\n")
            yield None
            return
        os.environ |= {"PUBSUB_EMULATOR_HOST": pubsub, "FIRESTORE_EMULATOR_HOST": firestore}
        emulators.warm_up(FirestoreStore(emulators.new_project(), "(default)", seconds=30))
        project = emulators.new_project()
        emulators.Pubsub(project).topic("completions")
        answer = emulators.secret_version(KEYS.encode())
        manager = stack.enter_context(emulators.secret_manager(lambda _request, _context: answer, directory=place))
        yield Parts(
            project,
            {"PUBSUB_EMULATOR_HOST": pubsub, "FIRESTORE_EMULATOR_HOST": firestore, **manager.environment},
        )
