"""
Measures the function, beside a hello-world function and a peer: `python tests/bench/bench.py`.

Every figure is a median of runs in turn on one machine, with its spread; what is claimed are ratios
against a baseline of the same run.
"""

import argparse
import compileall
import json
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "function")]

import google_parts
import imports as cold_imports
import ledgers
from cost import Rates, Taken, deliveries, per_thousand
from measured import (
    BENCH,
    Figure,
    Pythons,
    Weight,
    cold_start,
    embedded,
    folder,
    load,
    modelarts,
    paired,
    ratios,
    requests_to,
)
from modelarts_cleanup.adapters.ledger_firestore import FirestoreStore
from modelarts_cleanup.adapters.ledger_sqlite import SqliteStore
from modelarts_cleanup.entries import Store
from own_work import own_work
from reach import CONCURRENCY, EVENT_SECONDS
from rich.console import Console
from rich.table import Table
from served import FUNCTION, Served

# As infra/function.tf has it.
VCPUS, GIB = 1.0, 0.5
DELETION_MINUTES = (0, 5, 15)

CPU = "CPU of a worker for an event"

PEER = BENCH / "peer" / "main.py"
HELLO = BENCH / "hello" / "main.py"


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    what: str
    variant: str
    figure: Figure
    unit: str
    ratio: Figure | None = None
    against: str = ""


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    cold_starts: int
    events: int
    many: int
    delays_ms: tuple[int, ...]


WHOLE = Extent(cold_starts=11, events=300, many=10_000, delays_ms=(0, 50, 300))
SHORT = Extent(cold_starts=3, events=40, many=300, delays_ms=(0, 50))


def cold(runs: int, place: Path, parts: google_parts.Parts | None, pythons: Pythons) -> Iterator[Line]:
    """Measure from the start of a process to the answer to its first event."""
    with modelarts() as endpoint:

        def ours(google: google_parts.Parts, only: str | None = None) -> Callable[[], float]:
            return lambda: cold_start(google.settings(endpoint, place, only), python=pythons.ours)

        variants: dict[str, Callable[[], float]] = {
            "hello world": lambda: cold_start({}, source=HELLO, python=pythons.ours),
            "embedded": lambda: cold_start(embedded(endpoint, place), python=pythons.ours),
        }
        if parts:
            variants |= {
                "Google parts": ours(parts),
                "Secret Manager alone": ours(parts, "CREDENTIALS"),
                "Pub/Sub alone": ours(parts, "COMPLETION_SINK"),
                "Firestore alone": ours(parts, "LEDGER"),
                "peer": partial(cold_start, parts.peer(endpoint, place), source=PEER, python=pythons.peer, bare=True),
            }
        values = paired(runs, variants)
    against = ratios(values, "hello world")
    for name, found in values.items():
        yield Line("cold start to the first finished event", name, Figure.of(found), "ms", against[name], "hello world")
    if parts:
        faster = Figure.of([peer / mine for peer, mine in zip(values["peer"], values["Google parts"], strict=True)])
        yield Line(
            "cold start, the peer's by ours with Google parts", "peer", Figure.of(values["peer"]), "ms", faster, "ours"
        )


def imports(runs: int, pythons: Pythons) -> Iterator[Line]:
    """Measure what the imports of a cold start take, and their share of them all."""
    found = [cold_imports.steps(pythons.ours, FUNCTION) for _ in range(runs)]
    for step in found[0]:
        share = Figure.of([one[step] / sum(one.values()) for one in found])
        yield Line("imports of a cold start", step, Figure.of([one[step] for one in found]), "ms", share, "all imports")


def warm(
    events: int, place: Path, delay_ms: float, parts: google_parts.Parts | None, pythons: Pythons
) -> Iterator[Line]:
    """Measure events on a warm instance, one after another and in parallel."""
    with ExitStack() as stack:
        endpoint = stack.enter_context(modelarts(delay_ms))
        served = {}
        if delay_ms == 0:
            served["hello world"] = stack.enter_context(Served({}, source=HELLO, python=pythons.ours))
        served["embedded"] = stack.enter_context(Served(embedded(endpoint, place), python=pythons.ours))
        if parts:
            served["Google parts"] = stack.enter_context(Served(parts.settings(endpoint, place), python=pythons.ours))
            served["peer"] = stack.enter_context(Served(parts.peer(endpoint, place), source=PEER, python=pythons.peer))
        for one in served.values():
            load(one.url, parallel=1, events=20, bare=one is served.get("peer"))
        for parallel in (1, 8, 32):
            for name, one in served.items():
                before = requests_to(endpoint)
                took, rate = load(one.url, parallel=parallel, events=events, bare=name == "peer")
                calls = (requests_to(endpoint) - before) / events
                title = f"ModelArts in {delay_ms:.0f} ms, {parallel} parallel"
                ordered = sorted(took)
                shown = Figure(
                    ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.95)], ordered[int(len(ordered) * 0.99)]
                )
                yield Line(f"{title}: latency p50 (p95–p99)", name, shown, "ms")
                if parallel == 1:
                    added = Figure.of([value - calls * delay_ms for value in took])
                    yield Line(f"{title}: added to {calls:.1f} calls", name, added, "ms")
                yield Line(f"{title}: events a second", name, Figure(rate, rate, rate), "/s")


def weight(events: int, place: Path, parts: google_parts.Parts | None, pythons: Pythons) -> Iterator[Line]:
    """Weigh a worker after its first events, and after many."""
    with modelarts() as endpoint:
        variants = {"embedded": embedded(endpoint, place)}
        if parts:
            variants["Google parts"] = parts.settings(endpoint, place)
        for name, environment in variants.items():
            with Served(environment, python=pythons.ours) as served:
                load(served.url, parallel=8, events=100)
                before = Weight.of(served)
                load(served.url, parallel=8, events=events)
                after = Weight.of(served)
            yield Line("resident after 100 events", name, Figure.of([before.resident]), "MiB")
            grown = Figure.of([after.resident / before.resident])
            yield Line(f"resident after {events} more", name, Figure.of([after.resident]), "MiB", grown, "before")
            yield Line("peak", name, Figure.of([after.peak]), "MiB")
            yield Line("open files, before to after", name, Figure(after.files, before.files, after.files), "")
            yield Line("threads, before to after", name, Figure(after.threads, before.threads, after.threads), "")
            cpu = (after.cpu_seconds - before.cpu_seconds) * 1000 / events
            yield Line(CPU, name, Figure.of([cpu]), "ms")


def ledger(expiries: int, place: Path, parts: google_parts.Parts | None) -> Iterator[Line]:
    """Measure each step of the ledger, in SQLite and in Firestore."""
    stores: dict[str, Store] = {"SQLite": SqliteStore(str(place / "steps.db"))}
    if parts:
        stores["Firestore"] = FirestoreStore(parts.project, "(default)")
    for name, store in stores.items():
        ledgers.timings(store, 5)
        for step, took in ledgers.timings(store, expiries, first=5).items():
            yield Line(f"ledger: {step}", name, Figure.of(took), "ms")


def cost(found: list[Line], parts: google_parts.Parts, rates: Rates) -> Iterator[Line]:
    """Put a price on 1,000 expiries, by what was measured."""
    used = ledgers.charges(FirestoreStore(parts.project, "(default)"), number=-1)
    yield Line("Firestore documents read for an expiry", "Firestore", Figure.of([used["reads"]]), "")
    yield Line("Firestore documents written for an expiry", "Firestore", Figure.of([used["writes"]]), "")
    yield Line("round trips to Firestore for an expiry", "Firestore", Figure.of([used["calls"]]), "")
    cpu = next(line.figure.median for line in found if (line.what, line.variant) == (CPU, "Google parts")) / 1000
    taken = Taken(cpu, used["reads"], used["writes"])
    for minutes in DELETION_MINUTES:
        came = deliveries(minutes * 60, EVENT_SECONDS)
        alone, shared = (
            per_thousand(taken, came, rates, vcpus=VCPUS, gib=GIB, at_once=at_once) for at_once in (1, CONCURRENCY)
        )
        what = f"1,000 expiries, deleted within {minutes} min: {came.count} deliveries, {came.busy_seconds:.0f} s each"
        yield Line(what, f"{CONCURRENCY} at once, or alone", Figure(shared, shared, alone), "USD")


def lines(extent: Extent, rates: Rates, *, here: bool) -> Iterator[Line]:
    """Measure everything."""
    with folder() as place, google_parts.parts() as parts:
        compileall.compile_dir(FUNCTION, quiet=1)  # as the platform's build does
        pythons = Pythons() if here else Pythons.deployed(place)
        yield from cold(extent.cold_starts, place, parts, pythons)
        yield from imports(extent.cold_starts, pythons)
        with modelarts() as endpoint:
            own = Figure.of(own_work(endpoint, place, extent.events))
        yield Line("own work for an event, all but waiting for ModelArts", "embedded", own, "ms")
        for delay_ms in extent.delays_ms:
            yield from warm(extent.events if delay_ms < 300 else extent.events // 6, place, delay_ms, parts, pythons)
        yield from ledger(extent.events, place, parts)
        weighed = list(weight(extent.many, place, parts, pythons))
        yield from weighed
        if parts:
            yield from cost(weighed, parts, rates)


def main() -> None:
    """Measure, show and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a quick form, for a look")
    parser.add_argument("--here", action="store_true", help="in this environment, which holds more than is deployed")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--rate", action="append", default=[], metavar="NAME=USD", help="another price than the list's")
    given = parser.parse_args()
    table = Table(
        "what", "variant", "median (spread)", "ratio", title=f"{platform.machine()}, Python {platform.python_version()}"
    )
    found: list[Line] = []
    console = Console()
    for line in lines(SHORT if given.short else WHOLE, Rates().changed(given.rate), here=given.here):
        found.append(line)
        ratio = (
            f"{line.ratio.median:.2f} × {line.against} ({line.ratio.least:.2f}–{line.ratio.most:.2f})"
            if line.ratio
            else ""
        )
        table.add_row(line.what, line.variant, f"{line.figure} {line.unit}", ratio)
        console.print(f"{line.what}, {line.variant}: {line.figure} {line.unit} {ratio}", style="dim")
    console.print(table)
    if given.json:
        given.json.write_text(json.dumps([asdict(line) for line in found], indent=1))


if __name__ == "__main__":
    main()
