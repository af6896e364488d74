"""Joins the rooms: builds them once, takes one request to its end, and has its one log line written."""

import json
import os
import traceback
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import flask

from modelarts_cleanup import deadline, envelope, events, fields, http_request, log, settings, world
from modelarts_cleanup.ledger import Told
from modelarts_cleanup.model import Expiry, Original, RetryLater
from modelarts_cleanup.once import Once

if TYPE_CHECKING:
    from standardwebhooks.webhooks import Webhook as StandardWebhook

    from modelarts_cleanup.adapters.secrets import Secret
    from modelarts_cleanup.adapters.sinks import EventSink

# A wrapped message of the largest data that is read, with all the attributes that Pub/Sub allows, fits.
LARGEST_BODY = 512 * 1024
LARGEST_WEBHOOK = 64 * 1024
ORIGINAL_HEAD = 64 * 1024
ORIGINAL_TYPE = 256

Answer = tuple[str, int, dict[str, str]]


class Cleanup:
    """The entry point `cleanup`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._google_project = environment.get("GOOGLE_CLOUD_PROJECT")
        self._world = Once(lambda: world.world(settings.read(environment)))

    def __call__(self, request: flask.Request) -> Answer:
        """Take one request to its end: 200 with the outcome, or 503 to be delivered again. Nothing else."""
        clock = deadline.DeliveryClock()
        line: dict[str, object] = {}
        try:
            told = self._told(request, clock, line)
            status, answer = 200, events.answer(told.completion, duplicate=told.duplicate)
            line["attempt"] = events.attempt(told.completion)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong, the event must come again
            retry = _retry(error)
            status, answer = 503, _answer_to_retry(retry)
            line["attempt"] = retry.attempt
        return _answered(answer, status, clock, line)

    def _told(self, request: flask.Request, clock: deadline.DeliveryClock, line: dict[str, object]) -> Told:
        asked = http_request.read(request, largest=LARGEST_BODY)
        found = envelope.read(asked)
        line |= {"event_id": found.id, **http_request.trace(asked.headers, project=self._google_project)}
        built = self._world.get()
        line["dry_run"] = built.policy.dry_run
        original = Original(
            content_type=asked.headers.get("content-type", "")[:ORIGINAL_TYPE] or None,
            head=asked.body[:ORIGINAL_HEAD],
        )
        key = envelope.identity(found, asked)
        event = events.read(found, key=key, region=built.policy.region, original=original)
        ref = event.asks.ref if isinstance(event.asks, Expiry) else event.asks
        line |= {"region": ref.region, "project_id": ref.project_id, "cluster_id": ref.cluster_id}
        return deadline.told_within(deadline.ANSWERING, event, built, clock)


class Webhook:
    """The entry point `webhook`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._google_project = environment.get("GOOGLE_CLOUD_PROJECT")
        self._parts = Once(lambda: _webhook_parts(settings.read_webhook(environment)))

    def __call__(self, request: flask.Request) -> Answer:
        """Store one signed expiry on the sink: 202, or what is wrong with the request; 503 if it was not stored."""
        clock = deadline.DeliveryClock()
        line: dict[str, object] = {}
        try:
            status, answer = self._stored(request, clock, line)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong, it was not stored
            status, answer = 503, _answer_to_retry(_retry(error))
        return _answered(answer, status, clock, line)

    def _stored(
        self,
        request: flask.Request,
        clock: deadline.DeliveryClock,
        line: dict[str, object],
    ) -> tuple[int, dict[str, object]]:
        from modelarts_cleanup import webhook  # noqa: PLC0415 - `cleanup` does without it, and counts its start-up

        secrets, sink = self._parts.get()
        asked = http_request.read(request, largest=LARGEST_WEBHOOK)
        line |= http_request.trace(asked.headers, project=self._google_project)
        if asked.method != "POST":
            return 405, _refusal(f"{asked.method[:16]} is not allowed; a webhook is posted")
        if not asked.complete:
            return 413, _refusal(f"the body is larger than {LARGEST_WEBHOOK} bytes")
        try:
            webhooks = deadline.within(deadline.ANSWERING, secrets.get, clock)
            webhook.verify(asked.body, asked.headers, webhooks=webhooks, now=clock.now())
            line["event_id"] = asked.headers["webhook-id"]
            attributes, data = webhook.expiry_event(asked)
        except webhook.SignatureError as error:
            return 401, _refusal(str(error))
        except fields.InvalidEventError as error:
            return 400, {**_refusal(str(error)), "field": error.field, "problem": error.problem}
        deadline.within(deadline.ANSWERING, partial(sink.put, attributes, data), clock)
        return 202, {"id": attributes["id"]}


def _webhook_parts(
    given: settings.WebhookSettings,
) -> "tuple[Secret[tuple[StandardWebhook, ...]], EventSink]":
    from modelarts_cleanup import webhook  # noqa: PLC0415 - as above

    return world.secret(given.webhook_secrets, read=webhook.secrets), world.sink(given.expiry_sink)


def _refusal(detail: str) -> dict[str, object]:
    return {"outcome": "refused_request", "reason": None, "detail": detail}


def _retry(error: Exception) -> RetryLater:
    if isinstance(error, RetryLater):
        return error
    if isinstance(error, settings.SettingsError):
        return RetryLater("misconfigured", f"{len(error.problems)} settings cannot be used", problems=error.problems)
    # A mistake of ours is named by its kind and place: its text could hold anything.
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return RetryLater("internal_error", f"{type(error).__name__} in {frame.name}, line {frame.lineno}")


def _answer_to_retry(retry: RetryLater) -> dict[str, object]:
    answer: dict[str, object] = {"outcome": "retry", "reason": retry.reason, "detail": retry.detail}
    return {**answer, "problems": retry.problems} if retry.problems else answer


def _answered(
    answer: Mapping[str, object],
    status: int,
    clock: deadline.DeliveryClock,
    line: dict[str, object],
) -> Answer:
    line["duration_ms"] = round(clock.passed().total_seconds() * 1000, 3)
    outcome = str(answer.get("outcome", "accepted"))
    reason = answer.get("reason")
    detail = str(answer.get("detail", "the expiry event is stored"))
    log.write(outcome, None if reason is None else str(reason), detail, line)
    headers = {"Content-Type": "application/json", **({"Allow": "POST"} if status == 405 else {})}  # noqa: PLR2004
    return json.dumps(answer), status, headers


cleanup = Cleanup(os.environ)
webhook = Webhook(os.environ)
