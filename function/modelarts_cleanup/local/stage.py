"""Sets up a whole deployment on this machine: simulator, settings, ledger and sink in a folder that goes away."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from modelarts_cleanup import settings
from modelarts_cleanup.local.simulator import Lag, Simulator
from modelarts_cleanup.local.world import NO_LAG

REGION: Final = "cn-southwest-2"


class Stage:
    """A simulated ModelArts, and what a function needs to work on it; there after `with`, and gone with it."""

    def __init__(self, *, lag: Lag = NO_LAG) -> None:
        self.simulator = Simulator(lag=lag)

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="modelarts-cleanup-"))
        self.simulator.start()
        credentials = self.folder / "credentials.json"
        credentials.touch(mode=0o600)
        credentials.write_text(self.simulator.credentials_json())
        return self

    def __exit__(self, *_: object) -> None:
        self.simulator.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def settings(self, changed: Mapping[str, str]) -> dict[str, str]:
        """Give the settings of a function on this stage; `changed` ones are those of its policy."""
        given = {
            "MODELARTS_REGION": REGION,
            "MODELARTS_ENDPOINT": self.simulator.url,
            "DRY_RUN": "false",
            "CREDENTIALS": f"file://{self.folder}/credentials.json",
            "COMPLETION_SINK": f"file://{self.folder}/completions.jsonl",
            "LEDGER": f"sqlite://{self.ledger}",
            **changed,
        }
        settings.read(given)
        return given

    @property
    def ledger(self) -> Path:
        """Where the ledger's file is."""
        return self.folder / "ledger.db"

    def completions(self) -> list[Mapping[str, object]]:
        """Read the completion events that stand in the file of the sink."""
        file = self.folder / "completions.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
