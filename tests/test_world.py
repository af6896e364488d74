import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import MemoryStore
from modelarts_cleanup import places, settings, world
from modelarts_cleanup.adapters.ledger_firestore import FirestoreStore
from modelarts_cleanup.adapters.ledger_sqlite import SqliteStore
from modelarts_cleanup.adapters.sink_pubsub import PubsubSink
from modelarts_cleanup.adapters.sinks import FileSink, HttpSink
from modelarts_cleanup.once import Once
from served import FUNCTION

ON_GOOGLE = {
    "CREDENTIALS": "secretmanager://projects/p-1/secrets/s",
    "COMPLETION_SINK": "pubsub://projects/p-1/topics/topic",
    "LEDGER": "firestore://projects/p-1/databases/d",
}


def read_settings(**changed: str) -> settings.Settings:
    given = {
        "MODELARTS_REGION": "cn-southwest-2",
        "ALLOWED_PROJECTS": "p1",
        "ALLOWED_NAMES": "ci-*",
        "CREDENTIALS": "file:///none",
        "COMPLETION_SINK": "https://example.com/",
        "LEDGER": "sqlite:///none/ledger.db",
        **changed,
    }
    return settings.read(given)


def test_a_deployment_on_google_is_built_without_any_connection() -> None:
    given = read_settings(**ON_GOOGLE)
    built = world.world(given)
    assert built.policy == given.policy
    assert isinstance(built.sink, Once)
    assert isinstance(built.sink.get(), PubsubSink)
    ledger = world.store(given.ledger)
    assert isinstance(ledger, Once)
    assert isinstance(ledger.get(), FirestoreStore)


def test_the_embedded_adapters_are_built_as_the_settings_say(tmp_path: Path) -> None:
    assert isinstance(world.sink(places.FilePlace(str(tmp_path / "x"))), FileSink)
    assert isinstance(world.sink(places.HttpPlace("https://example.com/")), HttpSink)
    assert isinstance(world.store(places.SqlitePlace(str(tmp_path / "x"))), SqliteStore)
    (tmp_path / "secret").write_text("text")
    assert world.secret(places.FilePlace(str(tmp_path / "secret")), read=bytes.decode).get() == "text"


def later(build: Callable[[], object]) -> Once[object]:
    made: Once[object] = world.Later(build)
    return made


def test_parts_are_prepared_in_the_order_of_their_need_and_never_two_at_once() -> None:
    began: list[str] = []
    at_work: list[str] = []

    def building(name: str) -> Callable[[], object]:
        def build() -> object:
            assert at_work == []
            at_work.append(name)
            began.append(name)
            time.sleep(0.05)
            at_work.remove(name)
            return name

        return build

    parts = [later(building(name)) for name in "abc"]
    advance = threading.Thread(target=world.prepare, args=(*parts, "no part that takes long to import"))
    advance.start()
    assert [part.get() for part in parts] == ["a", "b", "c"]
    advance.join()
    assert began == ["a", "b", "c"]


def test_what_cannot_be_imported_is_told_to_the_one_who_needs_it() -> None:
    def build() -> object:
        raise ImportError("a package is missing")

    broken, next_one = later(build), later(lambda: "fine")
    world.prepare(broken, next_one)
    assert gc.isenabled()
    with pytest.raises(ImportError, match="a package is missing"):
        broken.get()
    assert next_one.get() == "fine"


IMPORTS = """
import sys
from modelarts_cleanup import app, settings, world

def imported():
    return [name for name in sys.modules if name.startswith(("google.", "grpc", "sqlite3", "standardwebhooks"))]

start = imported()
given = settings.read(dict(pair.split("=", 1) for pair in sys.argv[1:]))
parts = world.store(given.ledger), world.secret(given.credentials, read=bytes), world.sink(given.completion_sink)
print(start, imported())
for part in parts:
    if isinstance(part, world.Secret):
        try:
            part.fetch()
        except OSError:
            pass
    elif isinstance(part, world.Once):
        part.get()
print(imported())
"""


def imported(**changed: str) -> tuple[str, str, str]:
    """What is imported at the start, when all is built, and when all is needed."""
    given = {
        "MODELARTS_REGION": "r",
        "ALLOWED_PROJECTS": "p",
        "ALLOWED_NAMES": "n",
        "CREDENTIALS": "file:///none",
        "COMPLETION_SINK": "file:///none",
        "LEDGER": "sqlite:///none",
        **changed,
    }
    found = subprocess.run(
        [sys.executable, "-c", IMPORTS, *(f"{name}={value}" for name, value in given.items())],
        env={"PYTHONPATH": str(FUNCTION), "GOOGLE_APPLICATION_CREDENTIALS": "/none"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stderr == ""
    built, needed = found.stdout.splitlines()
    start, _, built = built.partition("] [")
    return start, built, needed


def test_no_client_of_googles_is_imported_unless_a_setting_names_one() -> None:
    start, built, needed = imported()
    assert "google.api" not in needed
    assert "grpc" not in needed
    assert "sqlite3" not in start
    assert "sqlite3" in built
    assert "standardwebhooks" not in needed


@pytest.mark.parametrize(
    ("setting", "client"),
    [
        ("CREDENTIALS", "google.cloud.secretmanager_v1"),
        ("COMPLETION_SINK", "google.pubsub_v1"),
        ("LEDGER", "google.cloud.firestore_v1"),
    ],
)
def test_a_client_of_googles_is_imported_when_it_is_needed_and_no_other(setting: str, client: str) -> None:
    _, built, needed = imported(**{setting: ON_GOOGLE[setting]})
    assert "google.api" not in built
    assert "grpc" not in built
    clients = {"google.cloud.secretmanager_v1", "google.pubsub_v1", "google.cloud.firestore_v1"}
    assert {name for name in clients if f"'{name}'" in needed} == {client}


def test_a_part_that_is_built_later_does_what_the_part_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink, store = (
        world.sink(places.TopicPlace("projects/p-1/topics/topic")),
        world.store(places.FirestorePlace("p", "d")),
    )
    monkeypatch.setattr(sink, "get", lambda: FileSink(str(tmp_path / "events")))
    sink.put({"id": "1"}, "{}")
    assert '"id":"1"' in (tmp_path / "events").read_text()
    monkeypatch.setattr(store, "get", MemoryStore)
    assert store.transact(["a"], list) == ["a"]
