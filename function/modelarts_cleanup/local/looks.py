"""Looks at a ledger or a sink without changing it: whether it is there, and would take what the function writes."""

import os
import socket
import sqlite3
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Final, assert_never
from urllib.parse import quote, urlsplit
from uuid import uuid4

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from modelarts_cleanup import places
from modelarts_cleanup.local.pubsub import Pubsub, PubsubError

SECONDS: Final = 10.0


class WrongError(Exception):
    """Something is wrong with a place, in words to act on."""


def ledger(place: places.LedgerUrl) -> str:
    """Say how well a ledger is. Raises `WrongError`, or `RetryLater`."""
    match place:
        case places.SqlitePlace(path):
            return _sqlite(Path(path))
        case places.FirestorePlace(project, database):
            return _firestore(project, database)
    assert_never(place)


def sink(place: places.SinkUrl) -> str:
    """Say how well a sink is. Raises `WrongError`."""
    match place:
        case places.FilePlace(path):
            return _writable(Path(path))
        case places.HttpPlace(url):
            return _connected(url)
        case places.TopicPlace(name):
            try:
                Pubsub().try_topic(name)
            except PubsubError as error:
                raise WrongError(error.message) from None
            return f"the topic {name} is there and may be published to"
    assert_never(place)


def _writable(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        raise WrongError(f"the folder {folder} does not exist, or cannot be looked into")
    if not path.exists():
        if not os.access(folder, os.W_OK | os.X_OK):
            raise WrongError(f"{path} does not exist, and its folder cannot be written to by this user")
        return f"{path} does not exist yet, and can be made"
    if not path.is_file():
        raise WrongError(f"{path} is no file")
    if not os.access(path, os.R_OK | os.W_OK):
        raise WrongError(f"{path} cannot be read and written by this user")
    return f"{path} can be written to"


def _sqlite(path: Path) -> str:
    said = _writable(path)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise WrongError(f"the folder of {path} cannot be written to by this user; SQLite puts its journal there")
    if not path.exists():
        return said
    # Without a journal beside it the file is whole; with `immutable` SQLite does not make one to read it.
    at_rest = "" if path.with_name(f"{path.name}-wal").exists() else "&immutable=1"
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro{at_rest}", uri=True, timeout=SECONDS)
        try:
            tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise WrongError(f"{path} cannot be read as an SQLite file ({type(error).__name__})") from None
    if tables and "ledger" not in tables:
        raise WrongError(f"{path} is an SQLite file of something else: it has tables, and none of them is `ledger`")
    return f"{path} is a ledger, and can be written to"


def _firestore(project: str, database: str) -> str:
    from google.api_core.exceptions import (  # noqa: PLC0415 - Google's, so only when needed
        GoogleAPIError,
        NotFound,
        PermissionDenied,
    )
    from google.cloud.firestore import Client  # noqa: PLC0415 - Google's, so only when needed

    from modelarts_cleanup.adapters.ledger_firestore import (  # noqa: PLC0415 - not always needed
        COLLECTION,
        FirestoreStore,
    )

    # No entry of a ledger has this key, and no document this name.
    nothing = f"check-{uuid4().hex}"
    FirestoreStore(project, database).transact([nothing], lambda _entries: None)
    where = f"the database {database} of {project}"
    try:
        # An update of what does not exist is refused as that to whoever may write, and writes nothing.
        with suppress(NotFound):
            document = Client(project=project, database=database).collection(COLLECTION).document(nothing)
            document.update({"forget_at": None}, retry=None, timeout=SECONDS)
    except PermissionDenied:
        wrong = "can be read but not written by this identity (roles/datastore.user is missing)"
        raise WrongError(f"{where} {wrong}") from None
    except GoogleAPIError as error:
        raise WrongError(f"{where} can be read; writing cannot be tried: {type(error).__name__}") from None
    return f"{where} can be read and written"


def _connected(url: str) -> str:
    """Connect, and speak TLS where the function would; nothing is sent."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    where = f"{host}:{port}"
    try:
        with socket.create_connection((host, port), timeout=SECONDS) as connection:
            if parts.scheme == "https":
                trusted = ssl.create_default_context(cafile=DEFAULT_CA_BUNDLE_PATH)
                with trusted.wrap_socket(connection, server_hostname=host):
                    return (
                        f"{where} speaks TLS with a certificate that is trusted; whether it takes events is not tried"
                    )
    except ssl.SSLError as error:
        raise WrongError(f"{where} is reached, but TLS with it fails: {error.reason or type(error).__name__}") from None
    except OSError as error:
        raise WrongError(f"{where} cannot be reached: {error.strerror or type(error).__name__}") from None
    return f"{where} can be reached; whether it takes events is not tried"
