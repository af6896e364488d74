"""
Builds what a deployment is made of from its settings; nothing connects before it is used.

What imports Google's clients is built when it is first needed, and in advance in a thread of its own, in the order
in which a delivery needs it: while one part waits for the network, the next is being imported.
"""

import gc
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar, assert_never

from modelarts_cleanup import credentials, places
from modelarts_cleanup.adapters.modelarts import ModelArts
from modelarts_cleanup.adapters.secrets import Secret, file_bytes
from modelarts_cleanup.adapters.sinks import EventSink, FileSink, HttpSink
from modelarts_cleanup.cleanup import World
from modelarts_cleanup.entries import Entries, Store
from modelarts_cleanup.ledger import Ledger
from modelarts_cleanup.once import Once
from modelarts_cleanup.settings import Settings

_T = TypeVar("_T")

# Threads that import the same packages crosswise may see them half made.
_IMPORTING = threading.Lock()


def world(given: Settings) -> World:
    """Build the world of `cleanup`. No client of Google's is imported unless a setting names one."""
    entries = store(given.ledger)
    keys = secret(given.credentials, read=credentials.read)
    completions = sink(given.completion_sink)
    threading.Thread(target=prepare, args=(entries, keys.fetch, completions), daemon=True).start()
    return World(
        policy=given.policy,
        clusters=ModelArts(given.endpoint, keys),
        ledger=Ledger(entries),
        sink=completions,
    )


def secret(place: places.SecretUrl, *, read: Callable[[bytes], _T]) -> Secret[_T]:
    """Build the reader of a secret."""
    match place:
        case places.FilePlace(path):
            return Secret(path, fetch=lambda: file_bytes(path), read=read)
        case places.SecretPlace(name):
            return Secret(name, fetch=_LaterSecret(name), read=read)
    assert_never(place)


def sink(place: places.SinkUrl) -> EventSink:
    """Build where events go."""
    match place:
        case places.FilePlace(path):
            return FileSink(path)
        case places.HttpPlace(url):
            return HttpSink(url)
        case places.TopicPlace(name):
            return _LaterTopic(name)
    assert_never(place)


def store(place: places.LedgerUrl) -> Store:
    """Build where the ledger's entries live."""
    match place:
        case places.SqlitePlace(path):
            from modelarts_cleanup.adapters.ledger_sqlite import SqliteStore  # noqa: PLC0415 - not always needed

            return SqliteStore(path)
        case places.FirestorePlace(project, database):
            return _LaterDatabase(project, database)
    assert_never(place)


class Later(Once[_T]):
    """A part whose packages are imported when it is first needed, one part at a time."""

    def __init__(self, build: Callable[[], _T]) -> None:
        def build_alone() -> _T:
            with _IMPORTING:
                return build()

        super().__init__(build_alone)


class _LaterSecret(Later[Callable[[], bytes]]):
    def __init__(self, name: str) -> None:
        def build() -> Callable[[], bytes]:
            from modelarts_cleanup.adapters.secret_manager import SecretManager  # noqa: PLC0415 - not always needed

            return SecretManager(name).fetch

        super().__init__(build)

    def __call__(self) -> bytes:
        return self.get()()


class _LaterTopic(Later[EventSink], EventSink):
    def __init__(self, name: str) -> None:
        def build() -> EventSink:
            from modelarts_cleanup.adapters.sink_pubsub import PubsubSink  # noqa: PLC0415 - not always needed

            return PubsubSink(name)

        super().__init__(build)

    def put(self, attributes: Mapping[str, str], data: str) -> None:
        self.get().put(attributes, data)


class _LaterDatabase(Later[Store]):
    def __init__(self, project: str, database: str) -> None:
        def build() -> Store:
            from modelarts_cleanup.adapters.ledger_firestore import FirestoreStore  # noqa: PLC0415 - not always needed

            return FirestoreStore(project, database)

        super().__init__(build)

    def transact(self, keys: Sequence[str], change: Callable[[Entries], _T]) -> _T:
        return self.get().transact(keys, change)


def prepare(*parts: object) -> None:
    """Build those parts in advance whose packages are imported later, one after another."""
    # Imports make many objects and next to no garbage: to look for it all the while is a tenth of their time.
    gc.disable()
    for part in parts:
        if isinstance(part, Later):
            with suppress(Exception):  # whoever needs it meets the same, and says so
                part.get()
    gc.enable()
