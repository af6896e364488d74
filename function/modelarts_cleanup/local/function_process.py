"""Serves the function in a process of its own, by the Functions Framework that also serves it in the cloud."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import modelarts_cleanup
from modelarts_cleanup.local.screen import CommandError

HOST: Final = "127.0.0.1"
STARTING_SECONDS: Final = 30.0
STOPPING_SECONDS: Final = 10.0
PACKAGE: Final = Path(modelarts_cleanup.__file__).parent
# All that a Python needs to start; no setting of the function is among it.
_KEPT: Final = ("PATH", "HOME", "TMP", "TEMP", "LANG", "LC_", "PYTHON")

LogLine = Mapping[str, object]


def function_folder(given: str | None, *, package: Path = PACKAGE) -> Path:
    """Find the folder that is deployed: around the package, or where the command is run. Raises `CommandError`."""
    folders = [Path(given)] if given else [package.parent, Path("function").absolute()]
    for folder in folders:
        if all((folder / name).is_file() for name in ("main.py", "modelarts_cleanup/app.py")):
            return folder
    raise CommandError(
        f"the function's main.py is not in {folders[-1]}: it is no part of the installed package. "
        "Run this from a checkout, or name the checkout's folder `function` with --function DIR."
    )


def port_problem(port: int) -> str | None:
    """Say why a port cannot be served on, or None."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            return getattr(error, "strerror", None) or str(error)
    return None


class FunctionProcess:
    """
    The entry point `cleanup` on a port of loopback; serving after `with`.

    `on_line` is called with each line of its log, from a thread of its own. `starting` and `stopping` are how many
    seconds it may take to do so.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str],
        *,
        port: int = 0,
        on_line: Callable[[LogLine], None],
        starting: float = STARTING_SECONDS,
        stopping: float = STOPPING_SECONDS,
    ) -> None:
        self._starting = starting
        self._stopping = stopping
        self._port = port or _free_port()
        self.url = f"http://{HOST}:{self._port}/"
        self._on_line = on_line
        self._unread: deque[str] = deque(maxlen=20)
        kept = {name: value for name, value in os.environ.items() if name.startswith(_KEPT)}
        reading, writing = os.pipe()
        self._log = os.fdopen(reading, "rb")
        self._process = subprocess.Popen(  # noqa: S603 - our own function, in our own Python
            [sys.executable, "-m", "functions_framework", "--target", "cleanup", "--source", str(folder / "main.py")],
            env={**kept, "HOST": HOST, "PORT": str(self._port), "THREADS": "8", **settings},
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us; the function is asked to end, as the platform does
        )
        os.close(writing)
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        try:
            self.wait_until_serving()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ended(self) -> bool:
        """Tell whether the process has ended by itself."""
        return self._process.poll() is not None

    def last_words(self) -> str:
        """Give the end of what it wrote beside its log."""
        return "\n".join(self._unread)

    def ask_to_end(self) -> None:
        """Ask it to end, as the platform does, and do not wait."""
        self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Ask it to end and wait; what is left after that is killed."""
        self.ask_to_end()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(self._stopping)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        self._log.close()

    def wait_until_serving(self) -> None:
        """Wait until it answers. Raises `CommandError` if it does not."""
        until = time.monotonic() + self._starting
        while not self.ended() and time.monotonic() < until:
            with suppress(OSError), socket.create_connection((HOST, self._port), timeout=1):
                return
            time.sleep(0.02)
        raise CommandError(f"the function does not serve: {self.last_words() or 'it says nothing'}")

    def _read_log(self) -> None:
        for line in self._log:
            text = line.decode(errors="replace").rstrip("\n")
            try:
                given = json.loads(text)
            except ValueError:
                given = None
            if isinstance(given, dict):
                self._on_line(given)
            else:
                self._unread.append(text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port
