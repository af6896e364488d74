"""
Keeps the ledger's entries in one collection of a Firestore database, one document an entry.

A document holds the entry as JSON in the field `entry`, which is a third less work than a field of Firestore's for
each of its own, and the timestamp `forget_at` for the TTL policy.

A transaction here is a batched read and one commit whose writes each demand that their document is still the one
that was read (https://cloud.google.com/firestore/docs/reference/rpc/google.firestore.v1#precondition); whoever
loses reads again. Firestore's own transactions lock documents over two calls, which a killed function leaves locked.

What this process read or wrote last it remembers, and saves the read where every document is written anyway: the
demand checks the memory. A delivery so takes one read and a commit a step.

Documents that are only read are not watched, and need not be: a batched read is one snapshot (its last `read_time`
holds for all, says the same page), a rule that decides by an entry writes that entry or the cluster's, and whoever
changes the one writes the other too. `tests/test_ledger_firestore.py` runs every rule into every other.
"""

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar
from urllib.parse import quote

import msgspec
from google.api_core.exceptions import Aborted, AlreadyExists, FailedPrecondition, GoogleAPIError, NotFound
from google.api_core.retry import Retry
from google.auth.exceptions import GoogleAuthError
from google.cloud.firestore import Client, DocumentReference, DocumentSnapshot

from modelarts_cleanup.adapters import google_errors
from modelarts_cleanup.entries import Entries, Entry
from modelarts_cleanup.model import RetryLater

# Fixed: Terraform puts the TTL policy on the field `forget_at` of this collection.
COLLECTION = "ledger"

# All of one transaction, lost races included.
SECONDS = 6.0
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.5
SHORTEST_CALL = 0.1
# Documents, of a few kilobytes each: those of the deliveries that are at work, and the limits.
REMEMBERED = 256

_T = TypeVar("_T")

# By the names of google.rpc.Code.
_WRONG = {
    "PERMISSION_DENIED": "may not be used by this identity (roles/datastore.user is missing)",
    "FAILED_PRECONDITION": "is not in native mode, or cannot be used in its present state",
}


class Known(msgspec.Struct, frozen=True):
    """A document as it was last read or written here; `updated_at` is None for one that does not exist."""

    entry: Entry | None
    updated_at: object | None


class FirestoreStore:
    """
    The entries of a ledger in one database; safe to use from many threads.

    `FIRESTORE_EMULATOR_HOST` is honoured, by the client itself. `seconds` is what one transaction may take.
    """

    def __init__(self, project: str, database: str, *, seconds: float = SECONDS) -> None:
        self._project = project
        self._database = database
        self._seconds = seconds
        self._lock = threading.Lock()
        self._made: Client | None = None
        self._remembered: dict[str, Known] = {}

    def transact(self, keys: Sequence[str], change: Callable[[Entries], _T]) -> _T:
        """
        Read, change and write entries, all or nothing; `change` runs again after each lost race.

        Raises `RetryLater` with `ledger_unavailable`. Then the entries may be written all the same: whatever
        comes next reads them, and goes on from there.
        """
        try:
            client = self._connected()
            until = time.monotonic() + self._seconds
            found = self._from_memory(client, keys, change, until)
            return found[0] if found else self._transacted(client, keys, change, until)
        except GoogleAPIError as error:
            raise self._unavailable(_wrong(error)) from None
        except GoogleAuthError as error:
            wrong = f"cannot be used: this process has no Google identity ({type(error).__name__})"
            raise self._unavailable(wrong) from None
        except msgspec.DecodeError:
            raise self._unavailable("holds a document that is no entry of a ledger") from None

    def _from_memory(
        self, client: Client, keys: Sequence[str], change: Callable[[Entries], _T], until: float
    ) -> tuple[_T] | None:
        """
        Try without reading, by what this process last saw: the rule and the result are Firestore's to confirm.

        It counts only if every document is written, as only what is written is checked to be what it was taken for.
        """
        known = {key: self._remembered[key] for key in keys if key in self._remembered}
        if len(known) < len(keys):
            return None
        try:
            found, changed = _changed(known, change)
        except RetryLater:  # a refusal by what may be old is none
            return None
        if len(changed) == len(keys) and self._committed(client, known, changed, until):
            return (found,)
        return None

    def _transacted(self, client: Client, keys: Sequence[str], change: Callable[[Entries], _T], until: float) -> _T:
        pause = FIRST_PAUSE
        while True:
            known = _read(client, keys, until)
            self._remember(known)
            found, changed = _changed(known, change)
            if not changed or self._committed(client, known, changed, until):
                return found
            # Losers of one race must not meet again in step.
            waited = random.uniform(0, pause)  # noqa: S311 - no secret
            if time.monotonic() + waited >= until:
                raise self._unavailable("is written to by too many at once")
            time.sleep(waited)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _committed(
        self, client: Client, known: Mapping[str, Known], changed: Mapping[str, Entry], until: float
    ) -> bool:
        """Write entries in one commit, unless one of their documents is no longer the one that is known."""
        collection = client.collection(COLLECTION)
        batch = client.batch()
        for key, entry in changed.items():
            document = collection.document(_document_id(key))
            fields = {"entry": msgspec.json.encode(entry).decode(), "forget_at": entry.forget_at}
            if known[key].updated_at is None:
                batch.create(document, fields)
            else:
                batch.update(document, fields, option=client.write_option(last_update_time=known[key].updated_at))
        self._forget(changed)
        try:
            # Sent once: what was carried out and whose answer was lost would lose the race against itself.
            written = batch.commit(retry=None, timeout=_left(until))
        except (Aborted, AlreadyExists, FailedPrecondition, NotFound):
            return False
        self._remember(
            {
                key: Known(entry, result.update_time)
                for (key, entry), result in zip(changed.items(), written, strict=True)
            },
        )
        return True

    def _remember(self, known: Mapping[str, Known]) -> None:
        with self._lock:
            for key, one in known.items():
                self._remembered.pop(key, None)
                self._remembered[key] = one
            while len(self._remembered) > REMEMBERED:
                del self._remembered[next(iter(self._remembered))]

    def _forget(self, keys: Iterable[str]) -> None:
        with self._lock:
            for key in keys:
                self._remembered.pop(key, None)

    def _connected(self) -> Client:
        with self._lock:
            if self._made is None:
                self._made = Client(project=self._project, database=self._database)
            return self._made

    def _unavailable(self, wrong: str) -> RetryLater:
        return RetryLater("ledger_unavailable", f"the database {self._database} of {self._project} {wrong}")


def _changed(known: Mapping[str, Known], change: Callable[[Entries], _T]) -> tuple[_T, dict[str, Entry]]:
    before: Entries = {key: one.entry for key, one in known.items()}
    entries = dict(before)
    found = change(entries)
    return found, {key: entry for key, entry in entries.items() if entry is not None and entry != before[key]}


def _read(client: Client, keys: Sequence[str], until: float) -> dict[str, Known]:
    """Read documents by key, as they stood at one instant."""
    ids = {_document_id(key): key for key in keys}
    collection = client.collection(COLLECTION)
    left = _left(until)
    retry = Retry(initial=FIRST_PAUSE, maximum=LONGEST_PAUSE, timeout=left)
    found = client.get_all([collection.document(name) for name in ids], retry=retry, timeout=left)
    return {ids[document.id]: Known(_entry(document), document.update_time) for document in found}


def _entry(document: DocumentSnapshot[DocumentReference]) -> Entry | None:
    if not document.exists:
        return None
    text = (document.to_dict() or {}).get("entry")
    entry: Entry = msgspec.json.decode(text if isinstance(text, str) else "", type=Entry)
    return entry


def _document_id(key: str) -> str:
    # https://cloud.google.com/firestore/docs/best-practices#document_ids: anything in UTF-8 but a slash.
    return quote(key, safe=":")


def _left(until: float) -> float:
    return max(until - time.monotonic(), SHORTEST_CALL)


def _wrong(error: Exception) -> str:
    return google_errors.wrong(error, api="Firestore", undone="cannot be used", table=_WRONG)
