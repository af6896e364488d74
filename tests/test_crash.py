"""Kill -9 at every step of a real process: whatever is redelivered ends in one DELETE and one completion event."""

import json
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import requests
from modelarts_cleanup.local.simulator import Call, Request, Simulator
from receiving import http_sink
from served import Served, completions, settings

EXPIRY = {"project_id": "p1", "cluster_id": "c-1", "expires_at": "2026-07-01T00:00:00Z"}


def two_minutes_pass(ledger: Path) -> None:
    """Let the lease that a killed process left behind run out, without the wait."""
    with sqlite3.connect(ledger) as connection:
        for key, entry in connection.execute("SELECT key, entry FROM ledger WHERE key LIKE 'cluster:%'").fetchall():
            known = json.loads(entry)
            known["lease"]["until"] = "2026-07-01T00:00:00Z"
            connection.execute("UPDATE ledger SET entry = ? WHERE key = ?", (json.dumps(known).encode(), key))


class Killer:
    """Kills the process when a call to ModelArts comes in, or when it has been carried out and not yet answered."""

    def __init__(self, call: Call, nth: int) -> None:
        self._call = call
        self._nth = nth
        self.struck = threading.Event()
        self.kill: Callable[[], None] = lambda: None

    def __call__(self, request: Request) -> None:
        if request.call is self._call:
            self._nth -= 1
            if self._nth == 0:
                self.kill()
                self.struck.set()


STEPS = [
    ("before the look", "on_request", Call.SHOW_CLUSTER, 1),
    ("after the look", "on_answer", Call.SHOW_CLUSTER, 1),
    ("before the members", "on_request", Call.LIST_SUPERNODES, 1),
    ("after the members", "on_answer", Call.LIST_SUPERNODES, 1),
    ("before the DELETE", "on_request", Call.DELETE_CLUSTER, 1),
    ("after the DELETE", "on_answer", Call.DELETE_CLUSTER, 1),
    ("before the second look", "on_request", Call.SHOW_CLUSTER, 2),
    ("after the second look", "on_answer", Call.SHOW_CLUSTER, 2),
]


@pytest.mark.parametrize(("hook", "call", "nth"), [step[1:] for step in STEPS], ids=[step[0] for step in STEPS])
def test_a_process_killed_at_a_call_leaves_nothing_undone(hook: str, call: Call, nth: int, tmp_path: Path) -> None:
    killer = Killer(call, nth)
    with Simulator() as simulator:
        simulator.add_cluster(project_id="p1", cluster_id="c-1", name="ci-a")
        given = settings(tmp_path, endpoint=simulator.url, credentials=simulator.credentials_json())
        setattr(simulator, hook, killer)
        with Served(given) as first:
            killer.kill = first.kill
            with pytest.raises(requests.RequestException):
                first.send(EXPIRY)
            assert killer.struck.wait(10)
        with Served(given) as second:
            while_the_lease_lives = second.send(EXPIRY)
            assert (while_the_lease_lives.status, while_the_lease_lives.reason) == (503, "in_progress")
            two_minutes_pass(tmp_path / "ledger.db")
            assert second.send(EXPIRY).outcome == "deleted"
            assert second.send(EXPIRY).outcome == "deleted"
        assert simulator.count_effective_deletes() == 1
        told = completions(tmp_path)
    assert [event["outcome"] for event in told] == ["deleted"]
    assert told[0]["data"]["attempt"] == 3


@pytest.mark.parametrize("stored", [False, True], ids=["before-it-is-stored", "after-it-is-stored"])
def test_a_process_killed_while_it_publishes_repeats_the_same_event(stored: bool, tmp_path: Path) -> None:  # noqa: FBT001
    with Simulator() as simulator, http_sink() as (url, received):
        simulator.add_cluster(project_id="p1", cluster_id="c-1", name="ci-a")
        given = settings(
            tmp_path, endpoint=simulator.url, credentials=simulator.credentials_json(), COMPLETION_SINK=url
        )
        with Served(given) as first:

            def kill(handler: object) -> None:
                first.kill()
                handler.close_connection = True  # type: ignore[attr-defined]

            received.keep_first = stored
            received.answers.append(kill)
            with pytest.raises(requests.RequestException):
                first.send(EXPIRY)
        with Served(given) as second:
            # What was recorded waits for the lease of the one who was publishing it, which is short.
            two_minutes_pass(tmp_path / "ledger.db")
            assert second.send(EXPIRY).outcome == "deleted"
        assert simulator.count(Call.DELETE_CLUSTER) == 1
    assert len(received.bodies) == 1
    assert len(set(received.ids)) == 1
    assert len(received.ids) == (2 if stored else 1)


def test_sixteen_deliveries_at_once_and_a_kill_end_in_one_event(tmp_path: Path) -> None:
    killer = Killer(Call.DELETE_CLUSTER, 1)
    with Simulator() as simulator:
        simulator.add_cluster(project_id="p1", cluster_id="c-1", name="ci-a")
        given = settings(tmp_path, endpoint=simulator.url, credentials=simulator.credentials_json())
        simulator.on_answer = killer

        def deliver_all(served: Served) -> list[str]:
            answers: list[str] = []

            def deliver(number: int) -> None:
                with suppress(requests.RequestException):
                    answers.append(str(served.send(EXPIRY, id=f"e{number}").body["outcome"]))

            threads = [threading.Thread(target=deliver, args=(number,)) for number in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return answers

        with Served(given) as first:
            killer.kill = first.kill
            deliver_all(first)
        two_minutes_pass(tmp_path / "ledger.db")
        with Served(given) as second:
            deliver_all(second)
            assert set(deliver_all(second)) == {"deleted"}
        assert simulator.count_effective_deletes() == 1
    assert [event["outcome"] for event in completions(tmp_path)] == ["deleted"]
