"""The scale simulation in small: what `tests/bench/scale.py` does with thousands, with some dozens."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))

import scale

pytest_plugins = ["emulators"]

OPTIONS = scale.Options(expiries=60, processes=2, kills=1, topics=6, brief=True)


@pytest.fixture(scope="module")
def record(
    pubsub_emulator: str, firestore_emulator: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[scale.Record]:
    place = tmp_path_factory.mktemp("scale")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "PUBSUB_EMULATOR_HOST", pubsub_emulator)
        patch.setitem(os.environ, "FIRESTORE_EMULATOR_HOST", firestore_emulator)
        yield scale.run(OPTIONS, pubsub=pubsub_emulator, firestore=firestore_emulator, place=place, say=print)


def test_nothing_is_lost_and_nothing_done_twice_and_the_limit_holds(record: scale.Record) -> None:
    assert scale.problems(record) == []
    assert record.kills == 1
    assert any(delivery.status is None for delivery in record.deliveries)
    assert record.waiting
    assert record.faults


def test_whatever_does_not_add_up_is_told(record: scale.Record) -> None:
    deletes = [request for request in record.requests if request.effective and request.fault is None]
    acknowledged = [delivery for delivery in record.deliveries if delivery.status == 200]
    first = record.told[0]
    told = json.loads(first.data)["cause"]
    cause = (told["source"], told["id"])
    wrong = {
        "a completion event is lost": replace(
            record, told=[one for one in record.told if one.attributes["ce-id"] != first.attributes["ce-id"]]
        ),
        "one comes of nothing": replace(
            record, identities={name: ("//x", "y") if one == cause else one for name, one in record.identities.items()}
        ),
        "one is repeated with another content": replace(record, told=[*record.told, replace(first, data=b"{}")]),
        "a cluster is deleted twice": replace(record, requests=[*record.requests, deletes[0]]),
        "one is never deleted": replace(record, requests=[one for one in record.requests if one is not deletes[0]]),
        "one still stands": replace(record, standing=record.standing | {str(deletes[0].cluster_id)}),
        "one that should stand does not": replace(record, standing=frozenset()),
        "a DELETE comes of nothing": replace(record, requests=[*record.requests, replace(deletes[0], effective=False)]),
        "a message is acknowledged twice": replace(record, deliveries=[*record.deliveries, acknowledged[0]]),
        "one is never acknowledged": replace(
            record, deliveries=[one for one in record.deliveries if one is not acknowledged[0]]
        ),
        "the limit is passed": replace(record, limit=record.limit - 1),
        "nothing waits for it": replace(record, waiting=frozenset()),
        "a message is left": replace(record, left=["m"]),
        "nobody is killed": replace(record, kills=0),
    }
    assert [name for name, seen in wrong.items() if not scale.problems(seen)] == []


def test_what_happened_is_shown(record: scale.Record) -> None:
    shown = {table.title: table.columns[-1]._cells[-1] for table in scale.tables(record)}  # noqa: SLF001
    assert shown["outcomes"] == str(len({told.attributes["ce-id"] for told in record.told}))
    assert shown["deliveries"] == str(len(record.deliveries))
