import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from modelarts_cleanup.once import Once


def test_it_is_built_when_it_is_first_needed_and_once_for_all() -> None:
    built: list[object] = []
    ready = threading.Barrier(8)

    def build() -> object:
        built.append(object())
        return built[-1]

    once = Once(build)
    assert built == []

    def get() -> object:
        ready.wait()
        return once.get()

    with ThreadPoolExecutor(8) as pool:
        given = [running.result() for running in [pool.submit(get) for _ in range(8)]]
    assert given == built * 8


def test_what_could_not_be_built_is_tried_again() -> None:
    tries = iter([ValueError("not now"), None])

    def build() -> str:
        if wrong := next(tries):
            raise wrong
        return "thing"

    once = Once(build)
    with pytest.raises(ValueError, match="not now"):
        once.get()
    assert (once.get(), once.get()) == ("thing", "thing")
