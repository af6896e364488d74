import itertools
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import grpc
import pytest
from emulators import Relay, new_project
from fakes import NOW, FakeClock, FakeClusters, FakeSink, T, a_policy, an_event
from google.cloud.firestore import Client, GeoPoint
from modelarts_cleanup.adapters.ledger_firestore import REMEMBERED, FirestoreStore
from modelarts_cleanup.cleanup import World, cleanup
from modelarts_cleanup.entries import ClusterEntry, Deletion, Entries, Entry, EventEntry, LimitEntry, Store
from modelarts_cleanup.ledger import KEPT, LEASE, Claim, Ledger, Told
from modelarts_cleanup.model import (
    Accepted,
    Cluster,
    ClusterRef,
    CompletionEvent,
    Deleted,
    Event,
    RetryLater,
    Skipped,
    instant_text,
)
from served import free_port

pytest_plugins = ["emulators"]

KEY = "cluster:r:p:c"
ENTRY = ClusterEntry(forget_at=NOW + KEPT, latest_expiry=NOW.replace(microsecond=123456))


def put(store: Store, key: str, entry: Entry) -> None:
    def change(entries: Entries) -> None:
        entries[key] = entry

    store.transact([key], change)


def got(store: Store, key: str) -> Entry | None:
    return store.transact([key], lambda entries: entries[key])


def complaint(act: Callable[[], object]) -> str:
    with pytest.raises(RetryLater) as raised:
        act()
    assert raised.value.reason == "ledger_unavailable"
    assert "hunter2" not in str(raised.value)
    return raised.value.detail


def outcome(act: Callable[[], object]) -> object:
    try:
        return act()
    except RetryLater as retry:
        return retry.reason


@pytest.fixture
def documents(firestore_emulator: str, google_project: str, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Look at what the store has written, past it."""
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", firestore_emulator)
    return Client(project=google_project)


@pytest.fixture
def relay(firestore_emulator: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """Stand between the stores that connect from now on and the emulator."""
    with Relay(firestore_emulator) as relay:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", relay.address)
        yield relay


# What a document looks like


def test_a_document_shows_an_operator_the_entry_and_the_ttl_policy_a_timestamp(
    firestore_store: FirestoreStore, documents: Client
) -> None:
    put(firestore_store, KEY, ENTRY)
    (document,) = documents.collection("ledger").stream()
    assert document.id == KEY
    fields = document.to_dict() or {}
    assert fields.keys() == {"entry", "forget_at"}
    assert json.loads(fields["entry"]) == {
        "kind": "cluster",
        "forget_at": instant_text(NOW + KEPT),
        "latest_expiry": instant_text(NOW.replace(microsecond=123456)),
        "lease": None,
        "deletion": None,
    }
    assert fields["forget_at"] == NOW + KEPT
    assert isinstance(document.get("forget_at"), datetime)


@pytest.mark.parametrize(
    "key", [KEY, "event:a/b", "event:a%2Fb", "event:é 朱", "event:.", "event:__x__", "event:../.."]
)
def test_any_key_becomes_a_document_of_its_own(firestore_store: FirestoreStore, documents: Client, key: str) -> None:
    put(firestore_store, key, ENTRY)
    assert got(firestore_store, key) == ENTRY
    (document,) = documents.collection("ledger").stream()
    assert "/" not in document.id
    assert len(document.id.encode()) <= 1500


def test_an_entry_comes_back_as_it_was_written_and_when_it_was_replaced(firestore_store: FirestoreStore) -> None:
    completion = CompletionEvent(id="1", source="s", subject=None, time="t", outcome="deleted", data='{"é":"朱"}')
    for entry in (
        EventEntry(forget_at=NOW + KEPT, received_at=NOW, deliveries=3, completion=completion),
        EventEntry(forget_at=NOW + KEPT, received_at=NOW, deliveries=4),
    ):
        put(firestore_store, "event:1", entry)
        assert got(firestore_store, "event:1") == entry


def test_a_rejected_event_with_all_that_is_kept_of_it_fits_into_a_document(firestore_store: FirestoreStore) -> None:
    data = "x" * (88 * 1024)
    completion = CompletionEvent(id="1", source="s", subject=None, time="t", outcome="rejected", data=data)
    entry = EventEntry(forget_at=NOW + KEPT, received_at=NOW, completion=completion)
    put(firestore_store, "event:1", entry)
    assert got(firestore_store, "event:1") == entry


def test_a_database_with_a_name_is_not_the_default_one(firestore_store: FirestoreStore, google_project: str) -> None:
    put(firestore_store, KEY, ENTRY)
    assert got(FirestoreStore(google_project, "ledger"), KEY) is None


@pytest.mark.parametrize("foreign", [{}, {"kind": "cluster"}, {"entry": 7}, {"entry": GeoPoint(1, 2)}, {"entry": "{}"}])
def test_a_document_that_is_no_entry_is_left_alone(
    firestore_store: FirestoreStore, documents: Client, foreign: dict[str, object]
) -> None:
    documents.collection("ledger").document(KEY).set(foreign)
    says = complaint(lambda: put(firestore_store, KEY, ENTRY))
    assert says.endswith("holds a document that is no entry of a ledger")
    assert documents.collection("ledger").document(KEY).get().to_dict() == foreign


# Transactions


def test_entries_are_written_together_or_not_at_all(firestore_store: FirestoreStore, google_project: str) -> None:
    other = FirestoreStore(google_project, "(default)")
    calls = 0

    def change(entries: Entries) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            put(other, "cluster:a", ENTRY)
            assert got(other, "cluster:b") is None
        entries["cluster:a"] = entries["cluster:b"] = ClusterEntry(forget_at=NOW)

    firestore_store.transact(["cluster:a", "cluster:b"], change)
    assert calls == 2
    assert got(other, "cluster:b") == ClusterEntry(forget_at=NOW)


def test_only_what_changes_is_written(firestore_store: FirestoreStore, documents: Client) -> None:
    put(firestore_store, "cluster:a", ENTRY)
    before = documents.collection("ledger").document("cluster:a").get().update_time

    def change(entries: Entries) -> None:
        entries["cluster:a"] = ENTRY
        entries["cluster:b"] = ENTRY

    firestore_store.transact(["cluster:a", "cluster:b"], change)
    assert documents.collection("ledger").document("cluster:a").get().update_time == before
    assert got(firestore_store, "cluster:b") == ENTRY


def test_a_document_that_the_ttl_policy_removed_meanwhile_is_a_lost_race(
    firestore_store: FirestoreStore, documents: Client
) -> None:
    put(firestore_store, KEY, ENTRY)
    seen: list[Entry | None] = []

    def change(entries: Entries) -> None:
        seen.append(entries[KEY])
        documents.collection("ledger").document(KEY).delete()
        entries[KEY] = ClusterEntry(forget_at=NOW)

    firestore_store.transact([KEY], change)
    assert seen == [ENTRY, None]
    assert got(firestore_store, KEY) == ClusterEntry(forget_at=NOW)


def test_a_rule_that_refuses_leaves_everything_as_it_was(firestore_store: FirestoreStore) -> None:
    def change(entries: Entries) -> None:
        entries[KEY] = ENTRY
        raise RetryLater("deletion_limit", "no")

    with pytest.raises(RetryLater, match="deletion_limit"):
        firestore_store.transact([KEY], change)
    assert got(firestore_store, KEY) is None


@pytest.mark.usefixtures("firestore_store")
def test_whoever_loses_every_race_gives_up_in_time(google_project: str, documents: Client) -> None:
    store = FirestoreStore(google_project, "(default)", seconds=1.0)
    put(store, KEY, ENTRY)
    races = itertools.count(1)

    def change(entries: Entries) -> None:
        documents.collection("ledger").document(KEY).update({"forget_at": NOW + timedelta(seconds=next(races))})
        entries[KEY] = ClusterEntry(forget_at=NOW)

    started = time.monotonic()
    assert complaint(lambda: store.transact([KEY], change)).endswith("is written to by too many at once")
    assert time.monotonic() - started < 3
    assert next(races) > 2


# The rules, under contention


def claims_at_once(ledger: Ledger, events: Sequence[Event], *, now: datetime = NOW) -> list[object]:
    def claim(number: int) -> object:
        return outcome(lambda: ledger.claim(events[number], holder=f"h{number}", now=now))

    with ThreadPoolExecutor(len(events)) as pool:
        return list(pool.map(claim, range(len(events))))


def test_sixteen_events_at_once_for_one_cluster_get_one_claim(firestore_store: FirestoreStore) -> None:
    found = claims_at_once(Ledger(firestore_store), [an_event(f"e{number}") for number in range(16)])
    assert sum(isinstance(one, Claim) for one in found) == 1
    assert found.count("in_progress") == 15


def test_sixteen_deliveries_at_once_of_one_event_get_one_claim_and_are_all_counted(
    firestore_store: FirestoreStore,
) -> None:
    found = claims_at_once(Ledger(firestore_store), [an_event()] * 16)
    assert sum(isinstance(one, Claim) for one in found) == 1
    entry = got(firestore_store, "event:e1")
    assert isinstance(entry, EventEntry)
    assert entry.deliveries == 16


@pytest.mark.usefixtures("firestore_store")
def test_sixteen_instances_of_the_function_get_one_claim(google_project: str) -> None:
    ledgers = [Ledger(FirestoreStore(google_project, "(default)")) for _ in range(16)]

    def claim(number: int) -> object:
        return outcome(lambda: ledgers[number].claim(an_event(f"e{number}"), holder=f"h{number}", now=NOW))

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(claim, range(16)))
    assert sum(isinstance(one, Claim) for one in found) == 1


def test_the_limit_is_exact_however_many_ask_at_once(firestore_store: FirestoreStore) -> None:
    ledger = Ledger(firestore_store)
    refs = [ClusterRef("r", "p1", f"c-{number}") for number in range(16)]
    claims = [ledger.claim(an_event(f"e{n}", ref=ref), holder="h", now=NOW) for n, ref in enumerate(refs)]

    def send(number: int) -> object:
        claim = claims[number]
        assert isinstance(claim, Claim)
        cluster = Cluster(ref=refs[number], type="HPS", name="ci-a")
        return outcome(lambda: ledger.delete_sent(claim, cluster, limit=5, now=NOW))

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(send, range(16)))
    assert sum(isinstance(one, Deletion) for one in found) == 5
    assert found.count("deletion_limit") == 11


def test_an_entry_past_its_time_counts_as_absent_though_the_ttl_policy_has_not_removed_it(
    firestore_store: FirestoreStore, documents: Client
) -> None:
    ledger = Ledger(firestore_store)
    event = an_event()
    claim = ledger.claim(event, holder="h1", now=NOW)
    assert isinstance(claim, Claim)
    completion = CompletionEvent(id="1", source="s", subject=None, time="t", outcome="deleted", data="{}")
    ledger.record(claim, Deleted(detail="gone"), completion, now=NOW)
    ledger.published(claim, now=NOW)
    assert isinstance(ledger.claim(event, holder="h2", now=NOW + KEPT - timedelta(seconds=1)), Told)
    afresh = ledger.claim(event, holder="h3", now=NOW + KEPT)
    assert isinstance(afresh, Claim)
    assert afresh.attempt == 1
    assert {document.id.partition(":")[0] for document in documents.collection("ledger").stream()} == {
        "cluster",
        "event",
        "expiry",
    }


# A lost answer


@dataclass
class Deliveries:
    """The use case over a store, as often as it takes."""

    store: Store
    clusters: FakeClusters = field(default_factory=FakeClusters)
    sink: FakeSink = field(default_factory=FakeSink)
    clock: FakeClock = field(default_factory=FakeClock)

    def deliver(self, holder: str) -> object:
        world = World(policy=a_policy(), clusters=self.clusters, ledger=Ledger(self.store), sink=self.sink)
        told = outcome(lambda: cleanup(an_event(), holder=holder, world=world, clock=self.clock))
        self.clock.next_delivery()
        return told


# A delivery commits a claim, "delete sent", "accepted", the record and "published".
@pytest.mark.parametrize("after_effect", [True, False], ids=["written", "not-written"])
@pytest.mark.parametrize("nth", range(5))
def test_a_commit_whose_answer_is_lost_ends_in_one_delete_and_one_event(
    firestore_store: FirestoreStore, relay: Relay, nth: int, *, after_effect: bool
) -> None:
    deliveries = Deliveries(firestore_store)
    deliveries.clusters.add()
    for _ in range(nth):
        relay.plan("Commit", None, passing=True)
    relay.plan("Commit", grpc.StatusCode.UNAVAILABLE, after_effect=after_effect)
    assert deliveries.deliver("h1") == "ledger_unavailable"
    told = deliveries.deliver("h2")
    assert isinstance(told, Told)
    assert told.completion.outcome == "deleted"
    assert len(set(deliveries.sink.published)) == 1
    # Only what was surely not accepted, as far as the ledger knows, is sent again.
    assert deliveries.clusters.deletes == 1


def test_a_commit_is_never_sent_twice(firestore_store: FirestoreStore, relay: Relay) -> None:
    relay.plan("Commit", grpc.StatusCode.UNAVAILABLE, after_effect=True)
    assert complaint(lambda: put(firestore_store, KEY, ENTRY)).endswith("cannot be reached")
    assert relay.calls.count("Commit") == 1
    assert got(firestore_store, KEY) == ENTRY


@pytest.mark.usefixtures("firestore_store")
def test_a_commit_that_arrives_late_changes_nothing_that_was_written_meanwhile(
    google_project: str, documents: Client, relay: Relay
) -> None:
    document = documents.collection("ledger").document(KEY)
    store = FirestoreStore(google_project, "(default)", seconds=0.5)
    put(store, KEY, ENTRY)
    given_up = threading.Event()
    relay.plan("Commit", grpc.StatusCode.UNAVAILABLE, after_effect=True, first=given_up.wait)
    assert complaint(lambda: put(store, KEY, ClusterEntry(forget_at=NOW))).endswith("cannot be reached in time")
    document.update({"forget_at": NOW + KEPT, "lease": {"holder": "another", "until": NOW}})
    given_up.set()
    until = time.monotonic() + 10
    while len(relay.ends) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    assert relay.ends[-1] == ("Commit", grpc.StatusCode.FAILED_PRECONDITION)
    assert document.get().get("lease.holder") == "another"


def test_a_read_that_fails_in_passing_is_not_noticed(firestore_store: FirestoreStore, relay: Relay) -> None:
    relay.plan("BatchGetDocuments", grpc.StatusCode.UNAVAILABLE)
    assert got(firestore_store, KEY) is None
    assert relay.calls == ["BatchGetDocuments", "BatchGetDocuments"]


@pytest.mark.parametrize("method", ["BatchGetDocuments", "Commit"])
@pytest.mark.usefixtures("firestore_store")
def test_an_answer_that_does_not_come_is_given_up_in_time(google_project: str, relay: Relay, method: str) -> None:
    store = FirestoreStore(google_project, "(default)", seconds=0.5)
    relay.plan(method, None)
    started = time.monotonic()
    assert complaint(lambda: put(store, KEY, ENTRY)).endswith("cannot be reached in time")
    assert time.monotonic() - started < 3


# Errors


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (grpc.StatusCode.NOT_FOUND, "does not exist"),
        (
            grpc.StatusCode.PERMISSION_DENIED,
            "may not be used by this identity (roles/datastore.user is missing)",
        ),
        (grpc.StatusCode.UNAUTHENTICATED, "cannot be used: Google does not accept this identity"),
        (grpc.StatusCode.FAILED_PRECONDITION, "is not in native mode, or cannot be used in its present state"),
        (grpc.StatusCode.DATA_LOSS, "cannot be used: DataLoss"),
    ],
)
def test_an_error_is_told_in_our_own_words(
    firestore_store: FirestoreStore, google_project: str, relay: Relay, code: grpc.StatusCode, says: str
) -> None:
    relay.plan("BatchGetDocuments", code)
    assert complaint(lambda: got(firestore_store, KEY)) == f"the database (default) of {google_project} {says}"
    assert relay.calls == ["BatchGetDocuments"]


def test_a_right_to_read_but_not_to_write_is_an_error_and_no_lost_race(
    firestore_store: FirestoreStore, relay: Relay
) -> None:
    relay.plan("Commit", grpc.StatusCode.PERMISSION_DENIED)
    assert complaint(lambda: put(firestore_store, KEY, ENTRY)).endswith("(roles/datastore.user is missing)")
    assert relay.calls.count("Commit") == 1


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.NOT_FOUND,
    ],
)
def test_every_way_to_say_that_a_race_was_lost_is_understood(
    firestore_store: FirestoreStore, relay: Relay, code: grpc.StatusCode
) -> None:
    relay.plan("Commit", code)
    put(firestore_store, KEY, ENTRY)
    assert relay.calls.count("Commit") == 2


def test_an_api_that_is_not_enabled_is_told_from_a_missing_right(firestore_store: FirestoreStore, relay: Relay) -> None:
    relay.plan("BatchGetDocuments", grpc.StatusCode.PERMISSION_DENIED, reason="SERVICE_DISABLED")
    assert complaint(lambda: got(firestore_store, KEY)).endswith("the API of Firestore is not enabled in its project")


def test_a_server_that_takes_connections_and_says_nothing_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", f"127.0.0.1:{silent.getsockname()[1]}")
        store = FirestoreStore(new_project(), "(default)", seconds=0.5)
        assert "cannot be reached" in complaint(lambda: got(store, KEY))


def test_a_server_that_is_down_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", f"127.0.0.1:{free_port()}")
    store = FirestoreStore(new_project(), "(default)", seconds=0.5)
    assert complaint(lambda: got(store, KEY)).endswith("cannot be reached")


def test_a_process_without_a_google_identity_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FIRESTORE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "hunter2.json"))
    store = FirestoreStore("p1", "(default)")
    assert complaint(lambda: got(store, KEY)).endswith("no Google identity (DefaultCredentialsError)")


# Every rule run into every other. Firestore watches the documents that are written, not those that are only read;
# below, whatever two or three rules do at once is what they could have done one after the other.

LATER = NOW + LEASE
FIRST, TWIN, LATER_EXPIRY = an_event("e1"), an_event("e2"), an_event("e3", expires_at=NOW - timedelta(minutes=1))
NEIGHBOUR = an_event("e4", ref=ClusterRef("cn-southwest-2", "p1", "c-2"))
DELETED, SKIPPED = Deleted(detail="gone"), Skipped(reason="dry_run", detail="kept")
Acting = Callable[[Ledger, dict[str, Claim]], object]


def told_of(name: str) -> CompletionEvent:
    return CompletionEvent(id=name, source="s", subject=None, time="t", outcome=name, data="{}")


def claims(name: str, event: Event, now: datetime) -> Acting:
    def act(ledger: Ledger, known: dict[str, Claim]) -> object:
        found = ledger.claim(event, holder=name, now=now)
        if isinstance(found, Claim):
            known[name] = found
        return found

    return act


def sends(name: str, now: datetime) -> Acting:
    def act(ledger: Ledger, known: dict[str, Claim]) -> object:
        claim = known[name]
        assert claim.expiry
        return ledger.delete_sent(claim, Cluster(ref=claim.expiry.ref, type="HPS", name="ci-a"), limit=1, now=now)

    return act


def holds(name: str, act: Callable[[Ledger, Claim], object]) -> Acting:
    return lambda ledger, known: act(ledger, known[name])


def records(name: str, end: Deleted | Skipped, now: datetime = NOW) -> Acting:
    return holds(name, lambda ledger, claim: ledger.record(claim, end, told_of(type(end).__name__), now=now))


def accepts(name: str) -> Acting:
    return holds(name, lambda ledger, claim: ledger.delete_answered(claim, Accepted(request_id="r"), now=NOW))


def publishes(name: str, now: datetime = NOW) -> Acting:
    return holds(name, lambda ledger, claim: ledger.published(claim, now=now))


def releases(name: str, event: Event) -> Acting:
    return lambda ledger, _known: ledger.release(event, holder=name, now=NOW)


ACTS: dict[str, Acting] = {
    "claim the event again": claims("h1b", FIRST, NOW),
    "claim it when the lease has run out": claims("h1c", FIRST, LATER),
    "claim the twin": claims("h2", TWIN, NOW),
    "claim the twin when the lease has run out": claims("h2b", TWIN, LATER),
    "claim a later expiry": claims("h3", LATER_EXPIRY, NOW),
    "send": sends("h1", NOW),
    "send for the neighbour": sends("h4", NOW),
    "accept": accepts("h1"),
    "record deleted": records("h1", DELETED),
    "record skipped": records("h1", SKIPPED),
    "publish": publishes("h1"),
    "release": releases("h1", FIRST),
    "record deleted by the one who took over": records("taken", DELETED, LATER),
    "publish by the one who took over": publishes("taken", LATER),
}
CLAIMED = [claims("h4", NEIGHBOUR, NOW), claims("h1", FIRST, NOW)]
TAKEN = [claims("taken", TWIN, LATER)]
STATES: dict[str, list[Acting]] = {
    "nothing": [],
    "claimed": CLAIMED,
    "sent": [*CLAIMED, sends("h1", NOW)],
    "accepted": [*CLAIMED, sends("h1", NOW), accepts("h1")],
    "deleted": [*CLAIMED, sends("h1", NOW), accepts("h1"), records("h1", DELETED)],
    "told": [*CLAIMED, sends("h1", NOW), accepts("h1"), records("h1", DELETED), publishes("h1")],
    "skipped": [*CLAIMED, records("h1", SKIPPED)],
    "skipped and told": [*CLAIMED, records("h1", SKIPPED), publishes("h1")],
    "released after sending": [*CLAIMED, sends("h1", NOW), releases("h1", FIRST)],
    "taken over": [*CLAIMED, sends("h1", NOW), *TAKEN],
    "taken over when skipped": [*CLAIMED, records("h1", SKIPPED), *TAKEN],
    "taken over when deleted": [*CLAIMED, records("h1", DELETED), *TAKEN],
    "taken over and deleted": [*CLAIMED, *TAKEN, records("taken", DELETED, LATER)],
}


class WatchingWrites:
    """Entries in a dict; like Firestore, a transaction notices only that what it writes has changed since it read."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.between: Callable[[], object] | None = None

    def transact(self, keys: Sequence[str], change: Callable[[Entries], T]) -> T:
        while True:
            before: Entries = {key: self.entries.get(key) for key in keys}
            between, self.between = self.between, None
            if between:
                between()
            entries = dict(before)
            found = change(entries)
            changed = {key: entry for key, entry in entries.items() if entry is not None and entry != before[key]}
            if all(self.entries.get(key) == before[key] for key in changed):
                self.entries |= changed
                return found


def possible(state: str, names: Sequence[str]) -> bool:
    """Tell whether the acts are open to who they belong to: only who holds a claim acts on it, and records once."""
    claimed = {"nothing": set()}.get(state, {"h1", "h4"}) | ({"taken"} if state.startswith("taken") else set())
    needed = {name: "taken" if "took over" in name else "h1" for name in names if not name.startswith(("claim", "rel"))}
    needed |= {name: "h4" for name in names if "neighbour" in name}
    records_once = [needed[name] for name in names if name.startswith("record")]
    if "skipped" in state or state in ("deleted", "told", "taken over when deleted"):
        records_once.append("h1")
    if state == "taken over and deleted":
        records_once.append("taken")
    return set(needed.values()) <= claimed and len(records_once) == len(set(records_once))


def after(state: str, store: Store) -> Callable[[str], object]:
    """Bring a store into a state, and give what carries out an act on it."""
    ledger, known = Ledger(store), dict[str, Claim]()
    for act in STATES[state]:
        act(ledger, known)
    return lambda name: outcome(lambda: ACTS[name](ledger, known))


def meeting(state: str, outer: str, inner: Sequence[str]) -> tuple[list[object], dict[str, Entry]]:
    """Carry out acts while another has read and not yet written."""
    store = WatchingWrites()
    act = after(state, store)
    met: list[object] = []
    store.between = lambda: met.extend(act(name) for name in inner)
    return [act(outer), *met], store.entries


def in_turn(state: str, outer: str, inner: Sequence[str], *, place: int) -> tuple[list[object], dict[str, Entry]]:
    store = WatchingWrites()
    act = after(state, store)
    found = [act(name) for name in (*inner[:place], outer, *inner[place:])]
    return [found[place], *found[:place], *found[place + 1 :]], store.entries


@pytest.mark.parametrize("state", STATES)
def test_rules_that_meet_do_what_they_could_have_done_in_turn(state: str) -> None:
    # All pairs, and as many of the triples as there is time for.
    triples = random.Random(state).sample(list(itertools.product(ACTS, repeat=3)), 50)  # noqa: S311 - no secret
    for outer, *inner in itertools.chain(itertools.product(ACTS, repeat=2), triples):
        if possible(state, [outer, *inner]):
            places = range(len(inner) + 1)
            serial = [in_turn(state, outer, inner, place=place) for place in places]
            assert meeting(state, outer, inner) in serial, (outer, inner)


def test_a_delivery_reads_once_and_then_commits_a_step(firestore_store: FirestoreStore, relay: Relay) -> None:
    ledger = Ledger(firestore_store)
    clusters = FakeClusters()
    world = World(policy=a_policy(), clusters=clusters, ledger=ledger, sink=FakeSink())
    for number in range(2):
        ref = ClusterRef("cn-southwest-2", "p1", f"c-{number}")
        clusters.add(ref)
        relay.calls.clear()
        cleanup(an_event(f"e{number}", ref=ref), holder=f"h{number}", world=world, clock=FakeClock())
    # Claim; delete sent; delete accepted; record; published. The limit was known from the delivery before.
    assert relay.calls == ["BatchGetDocuments", *["Commit"] * 5]


def test_what_is_remembered_is_not_believed(firestore_store: FirestoreStore, google_project: str) -> None:
    def add(entries: Entries) -> int:
        known = entries["limit:a"]
        counted = known.counted if isinstance(known, LimitEntry) else ()
        entries["limit:a"] = LimitEntry(forget_at=NOW + KEPT, counted=(*counted, NOW + KEPT))
        return len(counted) + 1

    elsewhere = FirestoreStore(google_project, "(default)")
    assert [store.transact(["limit:a"], add) for store in (firestore_store, elsewhere, firestore_store)] == [1, 2, 3]


def test_what_is_only_read_is_read_afresh(firestore_store: FirestoreStore, google_project: str) -> None:
    def write(entries: Entries) -> None:
        entries["limit:a"] = LimitEntry(forget_at=NOW + KEPT, counted=(NOW + KEPT,))

    firestore_store.transact(["limit:a"], lambda entries: entries)
    FirestoreStore(google_project, "(default)").transact(["limit:a"], write)
    found = firestore_store.transact(["limit:a"], dict)
    assert isinstance(found["limit:a"], LimitEntry)


def test_only_so_much_is_remembered(firestore_store: FirestoreStore) -> None:
    for number in range(REMEMBERED + 5):
        firestore_store.transact([f"limit:{number}"], list)
    assert len(firestore_store._remembered) == REMEMBERED  # noqa: SLF001 - what is not to be seen from outside


def test_a_refusal_by_what_is_remembered_is_asked_again_of_what_stands(
    firestore_store: FirestoreStore, google_project: str
) -> None:
    ledger, elsewhere = Ledger(firestore_store), Ledger(FirestoreStore(google_project, "(default)"))
    claim = ledger.claim(an_event(), holder="here", now=NOW)
    assert isinstance(claim, Claim)
    for number in range(2):
        clock = NOW + number * 2 * LEASE
        taken = elsewhere.claim(an_event("e2"), holder=f"there-{number}", now=clock + 2 * LEASE)
        assert isinstance(taken, Claim)
        with pytest.raises(RetryLater, match="took over"):
            ledger.delete_answered(claim, Accepted(request_id=None), now=NOW)
