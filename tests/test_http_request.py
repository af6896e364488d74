"""A request is read to its end, and to an end."""

import hashlib
import io
import threading

import flask
import pytest
from modelarts_cleanup import http_request
from modelarts_cleanup.model import RetryLater
from werkzeug.exceptions import ClientDisconnected
from werkzeug.test import EnvironBuilder


def request(body: io.BytesIO, *, length: int) -> flask.Request:
    environ = EnvironBuilder(method="POST", headers=[("X-A", "b")]).get_environ()
    environ["CONTENT_LENGTH"] = str(length)
    environ["wsgi.input"] = body
    environ["wsgi.input_terminated"] = True  # as the server does that gives us requests
    return flask.Request(environ)


def test_a_request_is_read_whole() -> None:
    found = http_request.read(request(io.BytesIO(b"abc"), length=3), largest=10)
    assert (found.method, found.body, found.complete) == ("POST", b"abc", True)
    assert found.headers["x-a"] == "b"
    assert found.digest == hashlib.sha256(b"abc").hexdigest()


def test_of_a_body_that_is_too_large_the_head_and_the_hash_are_kept() -> None:
    body = b"x" * 1_000_000
    found = http_request.read(request(io.BytesIO(body), length=len(body)), largest=10)
    assert not found.complete
    assert 10 < len(found.body) < 100_000
    assert found.digest == hashlib.sha256(body).hexdigest()


def test_a_request_that_was_cut_off_is_asked_for_again() -> None:
    with pytest.raises(RetryLater, match="cut off"):
        http_request.read(request(io.BytesIO(b'{"half'), length=100), largest=1000)


@pytest.mark.parametrize("broken", [OSError("a chunk without an end"), ClientDisconnected()])
def test_a_request_that_breaks_in_its_middle_is_asked_for_again(broken: Exception) -> None:
    class Broken(io.BytesIO):
        def read(self, _size: int | None = -1) -> bytes:
            raise broken

    with pytest.raises(RetryLater, match="could not be read") as raised:
        http_request.read(request(Broken(), length=100), largest=1000)
    assert raised.value.reason == "request_cut_off"


def test_a_request_that_does_not_end_is_not_waited_for_and_the_framework_does_not_either() -> None:
    class Endless(io.BytesIO):
        def read(self, _size: int | None = -1) -> bytes:
            threading.Event().wait(2)
            return b""

    endless = request(Endless(), length=100)
    with pytest.raises(RetryLater, match="did not end"):
        http_request.read(endless, largest=1000, seconds=0.1)
    assert endless.get_data() == b""
