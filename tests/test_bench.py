"""The benchmark runs, and what of it is the same on every machine is held: requests, round trips, no growth."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))

import bench
import ledgers
from cost import Deliveries, Rates, Taken, deliveries, per_thousand
from measured import Weight, embedded, load, modelarts, requests_to
from modelarts_cleanup.adapters.ledger_firestore import FirestoreStore
from reach import MEASURED, Reach, looks, reach
from served import Served

pytest_plugins = ["emulators"]

# A leak of some kilobytes an event would be above it; what a heap holds for later is not.
MOST_GROWTH_MIB = 6
TAKEN = Taken(cpu_seconds=0.1, reads=5, writes=11)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with modelarts() as address:
        yield address


@pytest.mark.parametrize(("require_empty", "expected"), [("true", 4), ("false", 3)])
def test_an_event_asks_modelarts_no_more_than_it_must(
    endpoint: str, tmp_path: Path, require_empty: str, expected: int
) -> None:
    """A look, the members, the DELETE, and a look whether it is gone."""
    with Served(embedded(endpoint, tmp_path, REQUIRE_EMPTY=require_empty)) as served:
        before = requests_to(endpoint)
        load(served.url, parallel=1, events=10)
        assert requests_to(endpoint) - before == 10 * expected


def test_an_instance_does_not_grow(endpoint: str, tmp_path: Path) -> None:
    with Served({**embedded(endpoint, tmp_path), "THREADS": "8"}) as served:
        load(served.url, parallel=8, events=200)
        before = Weight.of(served)
        load(served.url, parallel=8, events=800)
        after = Weight.of(served)
    assert after.resident - before.resident < MOST_GROWTH_MIB
    # Each of eight threads may hold a connection to ModelArts and one to SQLite, with its journal.
    assert after.files <= before.files + 8
    assert after.threads <= before.threads + 8


def test_an_expiry_takes_seven_round_trips_to_firestore_and_six_on_a_warm_instance(
    firestore_store: FirestoreStore,
) -> None:
    """A read and a commit for the claim, one commit for each of four steps; the limit is read once an instance."""
    cold, warm = (ledgers.charges(firestore_store, number=number) for number in (1, 2))
    assert cold == {"calls": 7, "reads": MEASURED.reads, "writes": MEASURED.writes}
    assert warm == {"calls": 6, "reads": 3, "writes": 11}
    again = ledgers.charges_again(firestore_store, number=3)
    assert again == {"calls": 3, "reads": TAKEN.further_reads, "writes": TAKEN.further_writes}


def test_the_benchmark_runs_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    place = tmp_path / "places"
    place.mkdir()
    monkeypatch.setattr(bench, "SHORT", bench.Extent(cold_starts=1, events=4, many=10, delays_ms=(0,)))
    monkeypatch.setattr(sys, "argv", ["bench.py", "--short", "--here", "--json", str(tmp_path / "found.json")])
    bench.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert {line["variant"] for line in found} >= {"hello world", "embedded", "SQLite"}
    starts = [line for line in found if line["what"].startswith("cold start to")]
    assert {line["against"] for line in starts} == {"hello world"}
    steps = [line["figure"] for line in found if line["what"].startswith("ledger:")]
    assert all(0 < figure["least"] <= figure["median"] <= figure["most"] for figure in steps)


# Cost on paper


def test_an_expiry_comes_again_until_its_cluster_is_gone() -> None:
    assert deliveries(0, 1.5) == Deliveries(count=1, busy_seconds=1.5)
    assert deliveries(30, 1.5) == Deliveries(count=1, busy_seconds=31.5)
    # 31.5 s at work, 10 s of pause, then looking on for the rest: 60 - 41.5.
    assert deliveries(60, 1.5) == Deliveries(count=2, busy_seconds=51.5)
    # Pauses grow to ten minutes: at 0, 41.5, 93, 164.5, 276, 467.5, 819, 1450.5 and 2082 s.
    assert deliveries(2100, 1.5).count == 9


def test_a_price_is_what_is_taken_times_the_rates() -> None:
    nothing = Rates(**dict.fromkeys(vars(Rates()), 0.0))
    came = Deliveries(count=2, busy_seconds=60)

    def price(*rates: str, at_once: float = 1) -> float:
        return per_thousand(TAKEN, came, nothing.changed(list(rates)), vcpus=1, gib=0.5, at_once=at_once)

    assert price() == 0
    assert price("vcpu_second=1") == pytest.approx(60_000)
    assert price("vcpu_second=1", at_once=8) == pytest.approx(7_500)
    assert price("vcpu_second=1", at_once=1_000_000) == pytest.approx(200)  # no less than its own work
    assert price("gib_second=1") == pytest.approx(30_000)
    assert price("request=1") == pytest.approx(2_000)
    assert price("document_read=1") == pytest.approx(8_000)
    assert price("document_write=1") == pytest.approx(14_000)
    assert price("document_delete=1") == pytest.approx(3_000)
    assert price("pubsub_gib=1048576") == pytest.approx(20_000)
    assert price("secret_access=1") == pytest.approx(1_000)


@pytest.mark.parametrize(("rate", "error"), [("vcpu=1", TypeError), ("request=free", ValueError), ("x", ValueError)])
def test_a_rate_that_does_not_exist_or_is_no_number_is_refused(rate: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        Rates().changed([rate])


# Reach on paper


def test_a_delivery_looks_eleven_times_in_half_a_minute() -> None:
    # After 0, 0.25, 0.75, 1.75, 3.75, 7.75, 11.75, 15.75, 19.75, 23.75 and 27.75 s.
    assert [looks(seconds) for seconds in (0, 0.2, 0.25, 8, 30)] == [1, 1, 2, 6, 11]


def test_what_a_rate_asks_for_follows_from_what_one_expiry_takes() -> None:
    # Gone at once: 1.5 s at work, four calls, eleven documents.
    assert reach(60, 0, TAKEN) == Reach(
        at_work=1.5, instances=1, deliveries=1.0, modelarts_calls=4.0, documents_written=11.0
    )
    # Gone after a minute: 51.5 s in two deliveries, the second of which looks once before it looks on.
    found = reach(600, 60, TAKEN)
    assert (found.at_work, found.instances, found.deliveries) == (515, 65, 20)
    assert found.modelarts_calls == 10 * (3 + 11 + looks(18.5) + 1)
    assert found.documents_written == 10 * 14
    # An instance has one CPU, however little there is to wait for.
    assert reach(60_000, 0, replace(TAKEN, cpu_seconds=0.5)).instances == 500
