import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fakes import an_event
from modelarts_cleanup.adapters.ledger_sqlite import SqliteStore
from modelarts_cleanup.entries import Entries, Entry, EventEntry, LimitEntry
from modelarts_cleanup.ledger import Claim, Ledger
from modelarts_cleanup.model import RetryLater
from served import FUNCTION

NOW = datetime.now(UTC)
AHEAD = NOW + timedelta(days=90)
CANARY = "a-folder-that-nobody-should-read-of"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / CANARY
    folder.mkdir()
    return folder / "ledger.db"


@pytest.fixture
def store(file: Path) -> SqliteStore:
    return SqliteStore(str(file))


def an_entry(deliveries: int = 1, *, forget_at: datetime = AHEAD) -> EventEntry:
    return EventEntry(forget_at=forget_at, received_at=NOW, deliveries=deliveries)


def write(store: SqliteStore, key: str, entry: Entry) -> None:
    def change(entries: Entries) -> None:
        entries[key] = entry

    store.transact([key], change)


def read(store: SqliteStore, key: str) -> Entry | None:
    return store.transact([key], lambda entries: entries[key])


def count_up(store: SqliteStore) -> None:
    def change(entries: Entries) -> None:
        counted = entries["limit"]
        earlier = counted.counted if isinstance(counted, LimitEntry) else ()
        entries["limit"] = LimitEntry(forget_at=AHEAD, counted=(*earlier, NOW))

    store.transact(["limit"], change)


def counted(store: SqliteStore) -> int:
    entry = read(store, "limit")
    assert isinstance(entry, LimitEntry)
    return len(entry.counted)


def connections(file: Path) -> int:
    """Count the open descriptors of the database itself in this process: one a connection."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found += descriptor.readlink() == file
        except FileNotFoundError:  # the one that listed the directory
            continue
    return found


def started(script: str, *arguments: str) -> "subprocess.Popen[str]":
    """Run a piece of Python that can import the product."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": str(FUNCTION)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def hanging(script: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a piece of Python until it says that it hangs, and kill -9 it in the end."""
    with started(script, *arguments) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "hanging\n"
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def unavailable(act: Callable[[], object]) -> str:
    with pytest.raises(RetryLater) as raised:
        act()
    assert raised.value.reason == "ledger_unavailable"
    assert CANARY not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__
    return raised.value.detail


# Entries


def test_what_was_written_is_read_again_also_by_another_store(file: Path, store: SqliteStore) -> None:
    write(store, "event:ä", an_entry(3))
    assert read(store, "event:ä") == an_entry(3)
    assert read(SqliteStore(str(file)), "event:ä") == an_entry(3)


def test_a_key_that_was_never_written_is_none(store: SqliteStore) -> None:
    assert read(store, "event:e1") is None


def test_the_rule_sees_and_changes_all_its_keys_at_once(store: SqliteStore) -> None:
    write(store, "a", an_entry(1))

    def change(entries: Entries) -> set[str]:
        assert entries == {"a": an_entry(1), "b": None, "c": None}
        entries["a"], entries["b"] = an_entry(2), an_entry(3)
        return set(entries)

    assert store.transact(["a", "b", "c"], change) == {"a", "b", "c"}
    assert [read(store, key) for key in "abc"] == [an_entry(2), an_entry(3), None]


@pytest.mark.parametrize("error", [RetryLater("deletion_limit", "no"), KeyError("a mistake"), SystemExit()])
def test_a_rule_that_raises_writes_nothing_and_its_exception_comes_out(
    store: SqliteStore, error: BaseException
) -> None:
    write(store, "a", an_entry(1))

    def change(entries: Entries) -> None:
        entries["a"], entries["b"] = an_entry(2), an_entry(3)
        raise error

    with pytest.raises(type(error)) as raised:
        store.transact(["a", "b"], change)
    assert raised.value is error
    assert read(store, "a") == an_entry(1)
    assert read(store, "b") is None


def test_what_did_not_change_is_not_written(file: Path, store: SqliteStore) -> None:
    write(store, "a", an_entry(1))
    with closing(sqlite3.connect(file)) as watching:
        before = watching.execute("PRAGMA data_version").fetchone()
        write(store, "a", an_entry(1))
        assert watching.execute("PRAGMA data_version").fetchone() == before
        write(store, "a", an_entry(2))
        assert watching.execute("PRAGMA data_version").fetchone() != before


def test_the_file_is_a_table_of_json_that_a_person_can_read(file: Path, store: SqliteStore) -> None:
    write(store, "event:e1", an_entry(3, forget_at=datetime(2126, 1, 2, tzinfo=UTC)))
    with closing(sqlite3.connect(file)) as connection:
        [(key, entry, forget_at)] = connection.execute("SELECT key, entry, forget_at FROM ledger")
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert (key, forget_at) == ("event:e1", "2126-01-02T00:00:00Z")
    assert json.loads(entry)["deliveries"] == 3


def test_entries_long_past_their_time_are_removed_when_the_file_is_opened(file: Path, store: SqliteStore) -> None:
    ages = {"past": timedelta(days=-2), "just": timedelta(hours=-12), "ahead": timedelta(days=1)}
    for key, age in ages.items():
        write(store, key, an_entry(forget_at=datetime.now(UTC) + age))
    assert read(store, "past") is not None
    reopened = SqliteStore(str(file))
    assert [key for key in ages if read(reopened, key)] == ["just", "ahead"]
    assert read(store, "past") is None


# Many at once


def test_many_threads_lose_no_update(file: Path, store: SqliteStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: count_up(store), range(200)))
    assert counted(store) == 200
    assert connections(file) <= 8


def test_of_many_threads_one_gets_the_lease(store: SqliteStore) -> None:
    barrier = threading.Barrier(8)

    def claim(number: int) -> str:
        barrier.wait()
        try:
            return type(Ledger(store).claim(an_event(), holder=f"h-{number}", now=NOW)).__name__
        except RetryLater as retry:
            return retry.reason

    with ThreadPoolExecutor(8) as threads:
        found = sorted(threads.map(claim, range(8)))
    assert found == ["Claim", *["in_progress"] * 7]
    entry = read(store, "event:e1")
    assert isinstance(entry, EventEntry)
    assert entry.deliveries == 8


MANY = """
import sys
from datetime import UTC, datetime, timedelta
from modelarts_cleanup.adapters.ledger_sqlite import SqliteStore
from modelarts_cleanup.entries import LimitEntry

store, now = SqliteStore(sys.argv[1]), datetime.now(UTC)

def change(entries):
    counted = entries["limit"].counted if entries["limit"] else ()
    entries["limit"] = LimitEntry(forget_at=now + timedelta(days=1), counted=(*counted, now))
    return len(counted)

print("ready", flush=True)
sys.stdin.readline()
print([store.transact(["limit"], change) for _ in range(20)])
"""


def test_many_processes_lose_no_update_even_if_they_all_open_a_new_file(file: Path, store: SqliteStore) -> None:
    processes = [started(MANY, str(file)) for _ in range(4)]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    found = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert sorted(number for numbers in found for number in numbers) == list(range(80))
    assert counted(store) == 80


def test_connections_are_used_again(file: Path, store: SqliteStore) -> None:
    for number in range(20):
        write(store, "a", an_entry(number))
    assert connections(file) == 1


def test_connections_do_not_outnumber_those_who_work_at_once(file: Path, store: SqliteStore) -> None:
    with ThreadPoolExecutor(4) as threads:
        for _ in range(5):
            list(threads.map(lambda _: read(store, "a"), range(16)))
            assert connections(file) <= 4


def test_a_connection_that_failed_is_closed_and_replaced(file: Path, store: SqliteStore) -> None:
    def change(_: Entries) -> None:
        raise RetryLater("deletion_limit", "no")

    for _ in range(5):
        with pytest.raises(RetryLater):
            store.transact(["a"], change)
        assert connections(file) == 0
    write(store, "a", an_entry())
    assert connections(file) == 1


# What goes wrong

# After the first entry is written and before the second: the transaction is open.
HALFWAY = """
import sys, time
from datetime import UTC, datetime, timedelta
from modelarts_cleanup.adapters.ledger_sqlite import SqliteStore
from modelarts_cleanup.entries import EventEntry, LimitEntry

now = datetime.now(UTC)
ahead = now + timedelta(days=1)

class Hanging(LimitEntry, frozen=True):
    def __ne__(self, other):
        print("hanging", flush=True)
        time.sleep(600)

def change(entries):
    entries["a"] = EventEntry(forget_at=ahead, received_at=now, deliveries=2)
    entries["b"] = Hanging(forget_at=ahead)

SqliteStore(sys.argv[1]).transact(["a", "b"], change)
"""


def test_a_process_killed_in_the_middle_of_a_transaction_leaves_a_whole_file(file: Path, store: SqliteStore) -> None:
    write(store, "a", an_entry(1))
    with hanging(HALFWAY, str(file)):
        pass
    assert read(store, "a") == an_entry(1)
    assert read(store, "b") is None
    write(store, "a", an_entry(3))
    assert read(SqliteStore(str(file)), "a") == an_entry(3)
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_file_that_another_keeps_locked_is_waited_for_and_then_given_up(file: Path, store: SqliteStore) -> None:
    write(store, "a", an_entry(1))
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        started_at = time.monotonic()
        assert unavailable(lambda: read(store, "a")) == "SQLite: OperationalError"
        assert 4 < time.monotonic() - started_at < 8
    assert read(store, "a") == an_entry(1)


def test_a_transaction_that_does_not_end_is_not_waited_for_by_another_thread(file: Path) -> None:
    store = SqliteStore(str(file), busy_seconds=0.1)
    began, go_on = threading.Event(), threading.Event()

    def hang(_entries: Entries) -> None:
        began.set()
        go_on.wait(10)

    hanging = threading.Thread(target=store.transact, args=(["a"], hang))
    hanging.start()
    began.wait(10)
    with pytest.raises(RetryLater, match="another transaction does not end") as raised:
        store.transact(["a"], lambda _entries: None)
    assert raised.value.reason == "ledger_unavailable"
    go_on.set()
    hanging.join()
    store.transact(["a"], lambda _entries: None)


def test_a_file_that_another_locks_for_a_moment_is_waited_for(file: Path, store: SqliteStore) -> None:
    write(store, "a", an_entry(1))
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.2, lambda: other.execute("COMMIT"))
        timer.start()
        write(store, "a", an_entry(2))
        timer.join()
    assert read(store, "a") == an_entry(2)


def test_a_file_that_is_no_database_is_said_to_be_unavailable_and_left_as_it_is(file: Path, store: SqliteStore) -> None:
    text = b"this is no database, whatever its name says\n" * 100
    file.write_bytes(text)
    assert unavailable(lambda: read(store, "a")) == "SQLite: DatabaseError"
    assert file.read_bytes() == text
    assert connections(file) == 0


def test_a_damaged_database_is_said_to_be_unavailable(file: Path, store: SqliteStore) -> None:
    write(store, "a", an_entry(1))
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with file.open("r+b") as damaged:
        damaged.seek(100)
        damaged.write(b"\xff" * 8000)
    unavailable(lambda: read(SqliteStore(str(file)), "a"))


@pytest.mark.parametrize("row", [b"{", b"", b"\xff", b"[]", b'{"kind":"event"}', b'{"kind":"other"}'])
def test_a_row_that_is_no_entry_is_said_to_be_unavailable(file: Path, store: SqliteStore, row: bytes) -> None:
    write(store, "a", an_entry(1))
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE ledger SET entry = ?", (row,))
    unavailable(lambda: read(store, "a"))


@pytest.mark.parametrize("place", ["missing", "read_only", "folder"])
def test_a_file_that_cannot_be_opened_is_said_to_be_unavailable(file: Path, place: str) -> None:
    path = {"missing": file.parent / "none" / "ledger.db", "read_only": Path("/proc/ledger.db"), "folder": file.parent}
    store = SqliteStore(str(path[place]))
    assert unavailable(lambda: read(store, "a")) == "SQLite: OperationalError"


def test_a_file_whose_folder_appears_later_is_opened_then(file: Path) -> None:
    store = SqliteStore(str(file.parent / "later" / "ledger.db"))
    unavailable(lambda: read(store, "a"))
    (file.parent / "later").mkdir()
    write(store, "a", an_entry())
    assert read(store, "a") == an_entry()


FULL = """
import resource, sys
from datetime import UTC, datetime, timedelta
from modelarts_cleanup.adapters.ledger_sqlite import SqliteStore
from modelarts_cleanup.entries import LimitEntry
from modelarts_cleanup.model import RetryLater

store, now = SqliteStore(sys.argv[1]), datetime.now(UTC)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
written = 0

def change(entries):
    entries["limit"] = LimitEntry(forget_at=now + timedelta(days=1), counted=(now,) * (written + 1))

try:
    while True:
        store.transact(["limit"], change)
        written += 1
except RetryLater as retry:
    print(written, retry)
"""


def test_a_full_disk_is_said_to_be_unavailable_and_leaves_a_whole_file(file: Path, store: SqliteStore) -> None:
    with started(FULL, str(file)) as process:
        written, _, retry = process.communicate(timeout=60)[0].partition(" ")
    assert retry == "ledger_unavailable: SQLite: OperationalError\n"
    assert counted(store) == int(written) > 1
    count_up(store)
    assert counted(store) == int(written) + 1


def test_a_ledger_works_on_it(store: SqliteStore) -> None:
    ledger = Ledger(store)
    assert isinstance(ledger.claim(an_event(), holder="h1", now=NOW), Claim)
    with pytest.raises(RetryLater, match="in_progress"):
        ledger.claim(an_event(), holder="h2", now=NOW)


def test_who_opens_a_new_file_waits_for_one_who_still_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    reader = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    reader.executescript("CREATE TABLE other (x); BEGIN EXCLUSIVE;")

    def let_go() -> None:
        time.sleep(0.3)
        reader.execute("COMMIT")

    threading.Thread(target=let_go).start()
    SqliteStore(str(file)).transact(["limit:a"], lambda entries: entries)
    reader.close()
