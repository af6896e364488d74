"""Keeps the ledger's entries in one SQLite file, for many threads and processes at once."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from modelarts_cleanup.entries import Entries, Entry
from modelarts_cleanup.model import RetryLater, instant_text

BUSY_SECONDS = 5.0
OPENING_SECONDS = 0.2

_T = TypeVar("_T")
_OPENED = """
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = NORMAL;
    CREATE TABLE IF NOT EXISTS ledger (
        key TEXT PRIMARY KEY, entry BLOB NOT NULL, forget_at TEXT NOT NULL
    ) WITHOUT ROWID;
    DELETE FROM ledger WHERE forget_at < strftime('%Y-%m-%dT%H:%M:%SZ', 'now', '-1 day');
"""


class SqliteStore:
    """
    The entries of a ledger in one file.

    A transaction locks the file for writing at its start (`BEGIN IMMEDIATE`), as rules write what
    they have read. The journal is a write-ahead log: a killed process leaves a whole file.
    Threads of one process take turns before they ask for that lock: SQLite has those who wait for it sleep, for
    longer and longer.
    """

    def __init__(self, path: str, *, busy_seconds: float = BUSY_SECONDS) -> None:
        self._path = path
        self._busy_seconds = busy_seconds
        self._idle: sqlite3.Connection | None = None
        self._turn = threading.Lock()

    def transact(self, keys: Sequence[str], change: Callable[[Entries], _T]) -> _T:
        """Read, change and write entries in one transaction. Raises `RetryLater` with `ledger_unavailable`."""
        if not self._turn.acquire(timeout=self._busy_seconds):
            raise RetryLater("ledger_unavailable", "SQLite: another transaction does not end")
        try:
            with self._connection() as connection, connection:
                connection.execute("BEGIN IMMEDIATE")
                before: Entries = {key: _entry(connection, key) for key in keys}
                entries = dict(before)
                found = change(entries)
                for key, entry in entries.items():
                    if entry is not None and entry != before[key]:
                        connection.execute(
                            "INSERT OR REPLACE INTO ledger VALUES (?, ?, ?)",
                            (key, msgspec.json.encode(entry), instant_text(entry.forget_at)),
                        )
        except (sqlite3.Error, msgspec.DecodeError) as error:
            raise RetryLater("ledger_unavailable", f"SQLite: {type(error).__name__}") from None
        finally:
            self._turn.release()
        return found

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection, self._idle = self._idle or self._opened(), None
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._idle = connection

    def _opened(self) -> sqlite3.Connection:
        until = time.monotonic() + self._busy_seconds
        while True:
            # Who switches a new file to the write-ahead log is not made to wait for others, but may be refused
            # at once: short waits, again and again.
            connection = sqlite3.connect(
                self._path, timeout=OPENING_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                connection.executescript(_OPENED)
                connection.execute(f"PRAGMA busy_timeout = {int(self._busy_seconds * 1000)}")
            except sqlite3.Error as error:
                connection.close()
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                    raise
                time.sleep(0.01)
            else:
                return connection


def _entry(connection: sqlite3.Connection, key: str) -> Entry | None:
    row = connection.execute("SELECT entry FROM ledger WHERE key = ?", (key,)).fetchone()
    return msgspec.json.decode(row[0], type=Entry) if row else None
