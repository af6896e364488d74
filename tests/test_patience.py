"""A wait ends, with what the work gave, what it raised, or in time."""

import threading

import pytest
from modelarts_cleanup import patience


def test_what_the_work_gives_is_given() -> None:
    assert patience.within(1, lambda: None) is None
    assert patience.within(1, lambda: 7) == 7


def test_what_the_work_raises_is_raised() -> None:
    def work() -> None:
        raise SystemExit("no")

    with pytest.raises(SystemExit, match="no"):
        patience.within(1, work)


@pytest.mark.parametrize("seconds", [0.05, 0, -1])
def test_what_hangs_is_left_behind(seconds: float) -> None:
    end = threading.Event()
    with pytest.raises(patience.StillWaitingError) as raised:
        patience.within(seconds, end.wait)
    assert raised.value.thread.is_alive()
    end.set()
