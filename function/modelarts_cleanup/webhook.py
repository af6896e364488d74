"""
Verifies a signed webhook, and turns it into an expiry event.

The signature is that of https://www.standardwebhooks.com, checked by its own library over the raw bytes.
The library takes a timestamp 5 minutes ahead, and one that is not a whole number; this room does not.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook, WebhookVerificationError

from modelarts_cleanup import envelope, events, fields, strict_json
from modelarts_cleanup.model import instant_text

SOURCE = "//modelarts-cleanup/webhook"
OLDEST = timedelta(minutes=5)
AHEAD = timedelta(minutes=1)
PREFIX = "whsec_"

ID = re.compile(r"[!-~]{1,256}")
_SECRET = re.compile(r"whsec_[A-Za-z0-9+/]+={0,2}")
_TIMESTAMP = re.compile(r"[0-9]{1,11}")
_SIGNATURE = re.compile(r"v1,[A-Za-z0-9+/]{43}=")  # of 32 bytes


class SignatureError(ValueError):
    """The request does not prove who sent it; the text says nothing that helps to forge one."""


def secrets(text: bytes) -> tuple[Webhook, ...]:
    """
    Read secrets, one a line; several are valid at once while they are rotated.

    Raises `ValueError` that shows nothing of them.
    """
    lines = [line.strip() for line in text.decode("ascii", errors="replace").splitlines()]
    found: list[Webhook] = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        if not _SECRET.fullmatch(line):
            raise ValueError(f"has a line that is no {PREFIX}… secret in base64 (line {number})")
        try:
            found.append(Webhook(line))
        except (ValueError, EmptyWebhookSecretError):
            raise ValueError(f"has a line that is no {PREFIX}… secret in base64 (line {number})") from None
    if not found:
        raise ValueError("holds no webhook secret")
    return tuple(found)


def verify(body: bytes, headers: Mapping[str, str], *, webhooks: Sequence[Webhook], now: datetime) -> None:
    """Verify id, timestamp and signature; `headers` have lower-case names. Raises `SignatureError`."""
    timestamp = headers.get("webhook-timestamp", "")
    if not ID.fullmatch(headers.get("webhook-id", "")) or not _TIMESTAMP.fullmatch(timestamp):
        raise SignatureError("webhook-id or webhook-timestamp is missing or malformed")
    age = now - datetime.fromtimestamp(int(timestamp), UTC)
    if not -AHEAD <= age <= OLDEST:
        raise SignatureError("webhook-timestamp is too old or too far ahead")
    # What is no signature of this version says nothing against one beside it; the library would stop there.
    signatures = filter(_SIGNATURE.fullmatch, headers.get("webhook-signature", "").split(" "))
    signed = {**headers, "webhook-signature": " ".join(signatures)}
    fits = [_fits(webhook, body, signed) for webhook in webhooks]  # all are tried: as long for one as for another
    if not any(fits):
        raise SignatureError("webhook-signature does not fit")


def expiry_event(request: envelope.Request) -> tuple[dict[str, str], str]:
    """
    Turn a verified request into an expiry event: attributes and data.

    The body is the data, or a structured CloudEvent around it; what names the event is what was
    signed, the `webhook-id`. Raises `fields.InvalidEventError` naming the field.
    """
    found = envelope.Envelope(data=request.body)
    content_type = _structured(request)
    if content_type:
        found = envelope.read(msgspec.structs.replace(request, headers={"content-type": content_type}))
        if found.field is None and not _is_expiry(request.body):
            raise fields.InvalidEventError("type", f"is not {events.EXPIRED}")
    # The region of the deployment is not known here, and not needed to know that an event is sound.
    events.parse(events.data_object(found), region="any")
    signed_at = datetime.fromtimestamp(int(request.headers["webhook-timestamp"]), UTC)
    attributes = {
        "id": request.headers["webhook-id"],
        "source": SOURCE,
        "type": events.EXPIRED,
        "specversion": "1.0",
        "time": instant_text(signed_at),
    }
    return attributes, found.data.decode()


def _structured(request: envelope.Request) -> str | None:
    """Give the content type of a structured CloudEvent; None if the body is the data."""
    content_type = request.headers.get("content-type", "")
    if content_type.lower().startswith("application/cloudevents"):
        return content_type
    # Senders that cannot choose their content type may send a CloudEvent as plain JSON.
    try:
        given = strict_json.read(request.body)
    except ValueError:
        return None
    return "application/cloudevents+json" if isinstance(given, dict) and "specversion" in given else None


def _is_expiry(body: bytes) -> bool:
    # Not the type that was found: an event about a message on Pub/Sub has another event inside, which nobody signed
    # as what it is.
    given = strict_json.read(body)
    return isinstance(given, dict) and given.get("type") == events.EXPIRED


def _fits(webhook: Webhook, body: bytes, headers: Mapping[str, str]) -> bool:
    try:
        webhook.verify(body, dict(headers), json_parse=False)
    except (WebhookVerificationError, ValueError, TypeError):
        # Not base64, not ASCII, no comma, a body that is no UTF-8: the library lets them out as they come.
        return False
    return True
