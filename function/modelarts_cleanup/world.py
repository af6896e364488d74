"""Builds what a deployment is made of from its settings; nothing connects before it is used."""

from collections.abc import Callable
from typing import TypeVar, assert_never

from modelarts_cleanup import credentials, places
from modelarts_cleanup.adapters.modelarts import ModelArts
from modelarts_cleanup.adapters.secrets import Secret, file_bytes
from modelarts_cleanup.adapters.sinks import EventSink, FileSink, HttpSink
from modelarts_cleanup.cleanup import World
from modelarts_cleanup.ledger import Ledger, Store
from modelarts_cleanup.settings import Settings

_T = TypeVar("_T")


def world(given: Settings) -> World:
    """Build the world of `cleanup`. No client of Google's is imported unless a setting names one."""
    return World(
        policy=given.policy,
        clusters=ModelArts(given.endpoint, secret(given.credentials, read=credentials.read)),
        ledger=Ledger(store(given.ledger)),
        sink=sink(given.completion_sink),
    )


def secret(place: places.SecretUrl, *, read: Callable[[bytes], _T]) -> Secret[_T]:
    """Build the reader of a secret."""
    match place:
        case places.FilePlace(path):
            return Secret(path, fetch=lambda: file_bytes(path), read=read)
        case places.SecretPlace(name):
            from modelarts_cleanup.adapters.secret_manager import SecretManager  # noqa: PLC0415 - not always needed

            return Secret(name, fetch=SecretManager(name).fetch, read=read)
    assert_never(place)


def sink(place: places.SinkUrl) -> EventSink:
    """Build where events go."""
    match place:
        case places.FilePlace(path):
            return FileSink(path)
        case places.HttpPlace(url):
            return HttpSink(url)
        case places.TopicPlace(name):
            from modelarts_cleanup.adapters.sink_pubsub import PubsubSink  # noqa: PLC0415 - not always needed

            return PubsubSink(name)
    assert_never(place)


def store(place: places.LedgerUrl) -> Store:
    """Build where the ledger's entries live."""
    match place:
        case places.SqlitePlace(path):
            from modelarts_cleanup.adapters.ledger_sqlite import SqliteStore  # noqa: PLC0415 - not always needed

            return SqliteStore(path)
        case places.FirestorePlace(project, database):
            from modelarts_cleanup.adapters.ledger_firestore import FirestoreStore  # noqa: PLC0415 - not always needed

            return FirestoreStore(project, database)
    assert_never(place)
