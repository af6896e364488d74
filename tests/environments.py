"""Python environments that hold what a requirements file names, and nothing else."""

import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).parent.parent
DEPLOYED = ROOT / "function" / "requirements.txt"
TESTS = ROOT / "tests" / "requirements.txt"


class NoIndexError(RuntimeError):
    """There is no package index to install from."""


def make(folder: Path, requirements: Path = DEPLOYED) -> Path:
    """Make an environment, and give its Python. Raises `NoIndexError`, and `RuntimeError` with what pip says."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    add(python, requirements)
    return python


def add(python: Path, requirements: Path, *more: str) -> None:
    """Install what a file of hashed requirements names. Raises as `make`."""
    install = [str(python), "-m", "pip", "install", "--quiet", "--require-hashes", *more, "-r", str(requirements)]
    done = subprocess.run(install, check=False, capture_output=True, text=True)
    if done.returncode and re.search("connection|resolution", done.stderr, re.IGNORECASE):
        raise NoIndexError("no package index to install the function's requirements from")
    if done.returncode:
        raise RuntimeError(done.stderr)


def pinned(names: Collection[str]) -> str:
    """Give the hashed requirements of some of the packages that the tests use, as a file of their own has them."""
    blocks = re.finditer(r"^([a-z0-9-]+)==[^\n]*\\\n(?:    [^\n]*\n)+", TESTS.read_text(), re.MULTILINE)
    found = {block[1]: block[0] for block in blocks}
    return "".join(found[name] for name in names)
