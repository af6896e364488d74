"""Joins the rooms: builds them once, takes one request to its end, and writes its one log line."""

import hashlib
import io
import json
import os
import queue
import re
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import assert_never

import flask

from modelarts_cleanup import cleanup as use_case
from modelarts_cleanup import credentials, envelope, events, places, settings
from modelarts_cleanup.adapters.modelarts import ModelArts
from modelarts_cleanup.adapters.secrets import Secret, file_bytes
from modelarts_cleanup.adapters.sinks import FileSink, HttpSink
from modelarts_cleanup.ledger import Ledger, Store, Told
from modelarts_cleanup.model import Event, Expiry, Original, RetryLater, RetryReason

# A delivery works on ModelArts for 40 s, then has some left to record and tell, and answers
# within 55 s whatever hangs.
WORKING = timedelta(seconds=40)
ANSWERING = timedelta(seconds=55)
GIVING_BACK = timedelta(seconds=2)
# A wrapped message of the largest data that is read, with all the attributes that Pub/Sub allows, fits.
LARGEST_BODY = 512 * 1024
ORIGINAL_HEAD = 64 * 1024
_CHUNK = 64 * 1024
ORIGINAL_TYPE = 256

_WAITED_FOR: Mapping[str, RetryReason] = {
    "modelarts": "modelarts_unavailable",
    "secrets": "credentials_unavailable",
    "sinks": "sink_unavailable",
    "sink_pubsub": "sink_unavailable",
    "ledger_sqlite": "ledger_unavailable",
    "ledger_firestore": "ledger_unavailable",
}
_SEVERITY = {
    "failed": "ERROR",
    "rejected": "WARNING",
    "retry": "WARNING",
    "in_progress": "INFO",
    "still_deleting": "INFO",
    "expires_soon": "INFO",
    "credentials_unavailable": "ERROR",
    "credentials_refused": "ERROR",
    "misconfigured_endpoint": "ERROR",
    "misconfigured": "ERROR",
    "internal_error": "CRITICAL",
}
_TRACE = re.compile(r"(?:[0-9a-f]{2}-)?([0-9a-f]{32})(?:[-/;].*)?")

Answer = tuple[str, int, dict[str, str]]


class DeliveryClock:
    """The time of one delivery."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def now(self) -> datetime:
        """Tell the present."""
        return datetime.now(UTC)

    def passed(self) -> timedelta:
        """Tell how long the delivery has taken so far."""
        return timedelta(seconds=time.monotonic() - self._started)

    def left(self) -> timedelta:
        """Tell how long the delivery may still work on ModelArts."""
        return WORKING - self.passed()

    def sleep(self, span: timedelta) -> None:
        """Wait."""
        time.sleep(span.total_seconds())


class App:
    """The entry point `cleanup`, built from an environment on its first request."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._lock = threading.Lock()
        self._built: use_case.World | settings.SettingsError | None = None

    def cleanup(self, request: flask.Request) -> Answer:
        """Take one request to its end: 200 with the outcome, or 503 to be delivered again. Nothing else."""
        clock = DeliveryClock()
        line: dict[str, object] = {}
        try:
            told = self._told(request, clock, line)
            status, answer = 200, events.answer(told.completion, duplicate=told.duplicate)
            line["attempt"] = events.attempt(told.completion)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong, the event must come again
            retry = error if isinstance(error, RetryLater) else RetryLater("internal_error", _where(error))
            status, answer = 503, {"outcome": "retry", "reason": retry.reason, "detail": retry.detail}
            answer |= {"problems": retry.problems} if retry.problems else {}
            line["attempt"] = retry.attempt
        line["duration_ms"] = round(clock.passed().total_seconds() * 1000, 3)
        _write_line(answer, line)
        return json.dumps(answer), status, {"Content-Type": "application/json"}

    def _told(self, request: flask.Request, clock: DeliveryClock, line: dict[str, object]) -> Told:
        asked = _request(request)
        found = envelope.read(asked)
        line |= {"event_id": found.id, **_trace(asked.headers, self._environment.get("GOOGLE_CLOUD_PROJECT"))}
        world = self._world()
        original = Original(
            content_type=asked.headers.get("content-type", "")[:ORIGINAL_TYPE] or None,
            head=asked.body[:ORIGINAL_HEAD],
        )
        key = envelope.identity(found, asked)
        event = events.read(found, key=key, region=world.policy.region, original=original)
        ref = event.asks.ref if isinstance(event.asks, Expiry) else event.asks
        line |= {"region": ref.region, "project_id": ref.project_id, "cluster_id": ref.cluster_id}
        line["dry_run"] = world.policy.dry_run
        return _within(ANSWERING, event, world, clock)

    def _world(self) -> use_case.World:
        with self._lock:
            if self._built is None:
                try:
                    self._built = built(settings.read(self._environment))
                except settings.SettingsError as error:
                    self._built = error
            if isinstance(self._built, settings.SettingsError):
                problems = self._built.problems
                raise RetryLater("misconfigured", f"{len(problems)} settings cannot be used", problems=problems)
            return self._built


def built(given: settings.Settings) -> use_case.World:
    """Build what a deployment is made of. No adapter connects, or imports a client of Google's, before it is used."""
    key_pair = Secret(_name(given.credentials), fetch=_fetch(given.credentials), read=credentials.read)
    return use_case.World(
        policy=given.policy,
        clusters=ModelArts(given.endpoint, key_pair),
        ledger=Ledger(_store(given.ledger)),
        sink=_sink(given.completion_sink),
    )


def _fetch(place: places.SecretUrl) -> Callable[[], bytes]:
    match place:
        case places.FilePlace(path):
            return lambda: file_bytes(path)
        case places.SecretPlace(name):
            from modelarts_cleanup.adapters.secret_manager import SecretManager  # noqa: PLC0415 - not always needed

            return SecretManager(name).fetch
    assert_never(place)


def _name(place: places.SecretUrl) -> str:
    return place.path if isinstance(place, places.FilePlace) else place.name


def _sink(place: places.SinkUrl) -> use_case.Sink:
    match place:
        case places.FilePlace(path):
            return FileSink(path)
        case places.HttpPlace(url):
            return HttpSink(url)
        case places.TopicPlace(name):
            from modelarts_cleanup.adapters.sink_pubsub import PubsubSink  # noqa: PLC0415 - not always needed

            return PubsubSink(name)
    assert_never(place)


def _store(place: places.LedgerUrl) -> Store:
    match place:
        case places.SqlitePlace(path):
            from modelarts_cleanup.adapters.ledger_sqlite import SqliteStore  # noqa: PLC0415 - not always needed

            return SqliteStore(path)
        case places.FirestorePlace(project, database):
            from modelarts_cleanup.adapters.ledger_firestore import FirestoreStore  # noqa: PLC0415 - not always needed

            return FirestoreStore(project, database)
    assert_never(place)


def _within(span: timedelta, event: Event, world: use_case.World, clock: DeliveryClock) -> Told:
    """
    Run the use case in a thread of its own, as nothing else ends a wait that has no end of its own.

    What hangs is left behind without its lease: whatever it still wants to write, the ledger refuses.
    """
    holder = uuid.uuid4().hex
    ended: queue.SimpleQueue[Told | BaseException] = queue.SimpleQueue()

    def work() -> None:
        try:
            ended.put(use_case.cleanup(event, holder=holder, world=world, clock=clock))
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is waited for
            ended.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        found = ended.get(timeout=max((span - clock.passed()).total_seconds(), 0.0))
    except queue.Empty:
        reason = _waited_for(thread)
        _give_back(event, holder, world, clock)
        raise RetryLater(reason, f"no end after {int(span.total_seconds())} s") from None
    if isinstance(found, BaseException):
        raise found
    return found


def _waited_for(thread: threading.Thread) -> RetryReason:
    """Say what a thread hangs in, by the innermost of our adapters on its stack."""
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - the documented way to see another stack
    while frame:
        room = str(frame.f_globals.get("__name__")).removeprefix("modelarts_cleanup.adapters.")
        if room in _WAITED_FOR:
            return _WAITED_FOR[room]
        frame = frame.f_back
    return "internal_error"


def _give_back(event: Event, holder: str, world: use_case.World, clock: DeliveryClock) -> None:
    def release() -> None:
        with suppress(RetryLater):
            world.ledger.release(event, holder=holder, now=clock.now())

    thread = threading.Thread(target=release, daemon=True)  # the ledger may be what hangs
    thread.start()
    thread.join(GIVING_BACK.total_seconds())


def _request(request: flask.Request) -> envelope.Request:
    """Take what an event can be in out of a request; a body of any size is read, but not kept."""
    digest = hashlib.sha256()
    kept = bytearray()
    size = 0
    while chunk := request.stream.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
        if len(kept) < LARGEST_BODY:
            kept += chunk
    request.stream = io.BytesIO()  # the framework reads the rest of a body into memory
    return envelope.Request(
        method=request.method,
        headers={name.lower(): value for name, value in request.headers.items()},
        body=bytes(kept),
        digest=digest.hexdigest(),
        complete=size <= LARGEST_BODY,
    )


def _trace(headers: Mapping[str, str], project: str | None) -> dict[str, str]:
    # https://cloud.google.com/trace/docs/trace-context
    found = _TRACE.fullmatch(headers.get("x-cloud-trace-context") or headers.get("traceparent") or "")
    if not found:
        return {}
    trace = f"projects/{project}/traces/{found[1]}" if project else found[1]
    return {"logging.googleapis.com/trace": trace}


def _where(error: Exception) -> str:
    """Name a mistake of ours by its kind and place; its text could hold anything."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {frame.name}, line {frame.lineno}"


def _write_line(answer: Mapping[str, object], line: Mapping[str, object]) -> None:
    outcome, reason = answer["outcome"], answer["reason"]
    written = {
        "severity": _SEVERITY.get(str(reason), _SEVERITY.get(str(outcome), "INFO")),
        "message": f"{outcome}{f' ({reason})' if reason else ''}: {answer['detail']}",
        "outcome": outcome,
        "reason": reason,
        **{name: value for name, value in line.items() if value is not None},
    }
    sys.stdout.write(json.dumps(written) + "\n")
    sys.stdout.flush()


_APP = App(os.environ)
cleanup = _APP.cleanup
