import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from modelarts_cleanup import credentials
from modelarts_cleanup.adapters.secrets import FRESH_SECONDS, KEPT_SECONDS, LARGEST, Secret, file_bytes
from modelarts_cleanup.model import RetryLater
from modelarts_cleanup.signing import Credentials


@dataclass
class Place:
    """Where a secret stands; `answers` come first, then what was last given."""

    text: bytes = b"one"
    error: OSError | ValueError | None = None
    fetched: int = 0
    now: float = 1000.0
    secret: Secret[str] = field(init=False)

    def __post_init__(self) -> None:
        self.secret = Secret("s", fetch=self._fetch, read=_text, monotonic=lambda: self.now)

    def _fetch(self) -> bytes:
        self.fetched += 1
        if self.error:
            raise self.error
        return self.text


def _text(given: bytes) -> str:
    if not given:
        raise ValueError("is empty")
    return given.decode()


@pytest.fixture
def place() -> Place:
    return Place()


def refused(act: Callable[[], object]) -> RetryLater:
    with pytest.raises(RetryLater) as raised:
        act()
    assert raised.value.reason == "credentials_unavailable"
    assert raised.value.__suppress_context__
    return raised.value


# Kept for five minutes at most


def test_nothing_is_read_before_it_is_needed_and_then_once(place: Place) -> None:
    assert place.fetched == 0
    assert [place.secret.get() for _ in range(3)] == ["one"] * 3
    assert place.fetched == 1


def test_it_is_read_again_before_five_minutes_have_passed(place: Place) -> None:
    place.secret.get()
    place.text = b"two"
    place.now += FRESH_SECONDS - 1
    assert place.secret.get() == "one"
    place.now += 1
    assert place.secret.get() == "two"
    place.now += FRESH_SECONDS - 1
    assert place.secret.get() == "two"
    assert place.fetched == 2


def test_while_it_cannot_be_read_the_last_good_one_serves_up_to_five_minutes(place: Place) -> None:
    place.secret.get()
    place.error = OSError("cannot be read: down")
    place.now += KEPT_SECONDS - 1
    assert place.secret.get() == "one"
    place.now += 1
    assert "cannot be read: down" in refused(place.secret.get).detail
    place.error = None
    assert place.secret.get() == "one"


def test_what_is_too_old_is_dropped_and_never_served_again(place: Place) -> None:
    place.secret.get()
    place.error = OSError("cannot be read: down")
    place.now += KEPT_SECONDS
    refused(place.secret.get)
    place.now -= KEPT_SECONDS  # a clock that went back would make it young again
    refused(place.secret.get)


def test_a_failure_is_not_kept(place: Place) -> None:
    place.error = OSError("cannot be read: down")
    refused(place.secret.get)
    place.error = None
    assert place.secret.get() == "one"


@pytest.mark.parametrize("error", [OSError("cannot be read: down"), ValueError("is larger than allowed")])
def test_what_is_wrong_names_the_secret(place: Place, error: OSError | ValueError) -> None:
    place.error = error
    assert refused(place.secret.get).detail == f"the secret s {error}"


def test_what_cannot_be_understood_is_as_good_as_missing(place: Place) -> None:
    place.text = b""
    assert refused(place.secret.get).detail == "the secret s is empty"


# Read again after a 401


def test_it_is_read_again_when_it_was_not_accepted(place: Place) -> None:
    assert place.secret.get() == "one"
    place.text = b"two"
    assert place.secret.renewed("one") == "two"
    assert place.secret.get() == "two"
    assert place.fetched == 2


def test_it_is_not_read_again_if_somebody_else_just_has(place: Place) -> None:
    place.secret.get()
    place.text = b"two"
    place.secret.renewed("one")
    assert place.secret.renewed("one") == "two"
    assert place.fetched == 2


def test_one_that_was_not_rotated_is_given_again(place: Place) -> None:
    place.secret.get()
    assert place.secret.renewed("one") == "one"
    assert place.fetched == 2


def test_one_that_cannot_be_read_again_is_said_to_be_unavailable_and_the_old_one_is_kept(place: Place) -> None:
    place.secret.get()
    place.error = OSError("cannot be read: down")
    refused(lambda: place.secret.renewed("one"))
    assert place.secret.get() == "one"


def test_it_can_be_renewed_before_it_was_ever_kept(place: Place) -> None:
    assert place.secret.renewed("none") == "one"


def test_renewing_makes_it_young_again(place: Place) -> None:
    place.secret.get()
    place.now += FRESH_SECONDS - 1
    place.secret.renewed("one")
    place.now += FRESH_SECONDS - 1
    place.secret.get()
    assert place.fetched == 2


def test_many_threads_read_it_once() -> None:
    fetched: list[int] = []
    barrier = threading.Barrier(8)

    def fetch() -> bytes:
        fetched.append(1)
        return b"one"

    secret = Secret("s", fetch=fetch, read=_text)

    def get(_: int) -> str:
        barrier.wait()
        return secret.get()

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(get, range(8))) == {"one"}
    assert len(fetched) == 1


def test_who_waited_for_a_read_that_failed_shares_its_failure() -> None:
    fetched: list[int] = []
    waiting, go_on = threading.Barrier(8), threading.Event()

    def fetch() -> bytes:
        fetched.append(1)
        go_on.wait(10)
        raise OSError("is away")

    secret = Secret("s", fetch=fetch, read=_text)

    def get(_: int) -> str:
        waiting.wait()
        return refused(secret.get).detail

    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(get, number) for number in range(8)]
        time.sleep(0.2)  # long enough for the others to ask while the first one reads
        go_on.set()
        assert {one.result() for one in asked} == {"the secret s is away"}
    assert len(fetched) == 1
    assert refused(secret.get)
    assert len(fetched) == 2  # whoever asks later tries again


# A file


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\x00text\n")
    assert file_bytes(str(tmp_path / "secret")) == b"\x00text\n"


def test_a_file_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    file, new = tmp_path / "secret", tmp_path / "new"
    secret = Secret("s", fetch=lambda: file_bytes(str(file)), read=_text)
    file.write_text("one")
    assert secret.get() == "one"
    new.write_text("two")
    new.replace(file)
    assert secret.renewed("one") == "two"


def test_a_file_of_the_largest_size_is_read_and_a_larger_one_refused(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"x" * LARGEST)
    assert len(file_bytes(str(file))) == LARGEST
    file.write_bytes(b"x" * (LARGEST + 1))
    with pytest.raises(ValueError, match="is larger than 65536 bytes"):
        file_bytes(str(file))


def test_an_endless_file_is_refused() -> None:
    with pytest.raises(ValueError, match="is larger"):
        file_bytes("/dev/zero")


@pytest.mark.parametrize(("name", "why"), [("none", "No such file or directory"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(OSError, match=f"^cannot be read: {why}$"):
        file_bytes(str(tmp_path / name))


# What must not be shown


@pytest.mark.parametrize(
    "text",
    [
        b'{"access_key":"CANARY","secret_key":"CAN ARY"}',
        b'{"access_key":"CANARY"}',
        b'{"access_key":"CANARY","secret_key":"CANARY"',
        b"CANARY",
        b"CANARY\xff",
        b"User Name,Access Key Id,Secret Access Key\nx,CANARY\n",
        b'"CANARY\n',
    ],
)
def test_nothing_of_a_secret_is_shown_when_it_cannot_be_understood(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "secret"
    file.write_bytes(text)
    secret = Secret("s", fetch=lambda: file_bytes(str(file)), read=credentials.read)
    retry = refused(secret.get)
    shown = "".join(traceback.format_exception(retry)) + repr(retry) + repr(secret) + str(vars(retry))
    assert "CANARY" not in shown
    assert retry.__cause__ is None


def test_a_key_pair_is_read_from_it(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text('{"access_key":"a","secret_key":"s\\n"}\n')
    secret = Secret("s", fetch=lambda: file_bytes(str(file)), read=credentials.read)
    assert secret.get() == Credentials("a", "s")
    assert "'s'" not in repr(secret.get())
