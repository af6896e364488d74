"""What the imports of a cold start take, step by step, each in a process of its own."""

import subprocess
from pathlib import Path

STEPS = {
    "the framework and its server": "import functions_framework._cli, gunicorn.app.base, gunicorn.workers.gthread",
    "requests": "import requests",
    "ours": "import sys; sys.path.insert(0, {function!r}); import modelarts_cleanup.app",
    "what Google's clients share": "import grpc, google.auth, google.api_core.gapic_v1",
    "Firestore's": "import google.cloud.firestore",
    "Secret Manager's": "import google.cloud.secretmanager_v1",
    "Pub/Sub's": "import google.pubsub_v1.services.publisher",
}
_TIMED = """
import time
began = time.perf_counter()
{step}
print((time.perf_counter() - began) * 1000)
"""


def steps(python: str, function: Path) -> dict[str, float]:
    """Give the ms of each step, after those before it."""
    code = "".join(_TIMED.format(step=step.format(function=str(function))) for step in STEPS.values())
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return dict(zip(STEPS, map(float, done.stdout.split()), strict=True))
