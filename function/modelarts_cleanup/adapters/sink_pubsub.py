"""
Puts an event on a Pub/Sub topic: its data as the message's data, its attributes as `ce-` attributes.

The binding: https://github.com/googleapis/google-cloudevents/blob/main/docs/spec/pubsub.md. The generated client
publishes in one call that ends when the message is stored; the hand-written one on top of it would batch in a
thread of its own, which nobody waits for.
"""

import threading
from collections.abc import Mapping
from urllib.parse import quote

from google.api_core.exceptions import GoogleAPIError
from google.api_core.retry import Retry
from google.auth.exceptions import GoogleAuthError
from google.pubsub_v1.services.publisher import PublisherClient
from google.pubsub_v1.types import PubsubMessage

from modelarts_cleanup.adapters import google_errors
from modelarts_cleanup.adapters.sinks import SECONDS, EventSink
from modelarts_cleanup.model import RetryLater

# https://cloud.google.com/pubsub/quotas#resource_limits; the emulator takes more.
LARGEST_MESSAGE = 10_000_000
MOST_ATTRIBUTES = 100
LONGEST_NAME = 256
LONGEST_VALUE = 1024

# What HTTP does not carry as it is: white space, `"`, `%`, and all that is not ASCII.
_UNTOUCHED = "!#$&'()*+,/:;<=>?@[\\]^`{|}~"

# By the names of google.rpc.Code.
_WRONG = {
    "PERMISSION_DENIED": "may not be published to by this identity (pubsub.topics.publish is missing)",
    "INVALID_ARGUMENT": "does not take the event",
    "FAILED_PRECONDITION": "cannot be published to in its present state",
}


class PubsubSink(EventSink):
    """
    Publishes to one topic, by its full name `projects/P/topics/T`; safe to use from many threads.

    `PUBSUB_EMULATOR_HOST` is honoured, by the client itself. `seconds` is what one publish may take,
    repetitions included.
    """

    def __init__(self, name: str, *, seconds: float = SECONDS) -> None:
        self._name = name
        self._seconds = seconds
        self._lock = threading.Lock()
        self._made: PublisherClient | None = None

    def put(self, attributes: Mapping[str, str], data: str) -> None:
        """Publish an event and wait until it is stored; where that is not told, it may be stored all the same."""
        # Unwrapped by a push, attributes become headers, so they are written as HTTP's binding wants
        # (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md#3132).
        written = {f"ce-{name}": quote(value, safe=_UNTOUCHED) for name, value in attributes.items()}
        written["Content-Type"] = "application/json"
        message = PubsubMessage(data=data.encode(), attributes=written)
        _check(message)
        try:
            self._connected().publish(
                topic=self._name,
                messages=[message],
                retry=Retry(initial=0.1, maximum=1.0, timeout=self._seconds),
                timeout=self._seconds,
            )
        except GoogleAPIError as error:
            raise self._unavailable(_wrong(error)) from None
        except GoogleAuthError as error:
            wrong = f"cannot be published to: this process has no Google identity ({type(error).__name__})"
            raise self._unavailable(wrong) from None

    def _connected(self) -> PublisherClient:
        with self._lock:
            if self._made is None:
                self._made = PublisherClient()
            return self._made

    def _unavailable(self, wrong: str) -> RetryLater:
        return RetryLater("sink_unavailable", f"the topic {self._name} {wrong}")


def _check(message: PubsubMessage) -> None:
    """Raise `RetryLater` for what Pub/Sub would refuse, or keep waiting; no name here begins with its `goog`."""
    attributes = [(name, len(name.encode()), len(value.encode())) for name, value in message.attributes.items()]
    if len(attributes) > MOST_ATTRIBUTES:
        raise RetryLater(
            "sink_unavailable", f"the event has more than {MOST_ATTRIBUTES} attributes, too many for Pub/Sub"
        )
    for name, name_size, value_size in attributes:
        if name_size > LONGEST_NAME or value_size > LONGEST_VALUE:
            raise RetryLater("sink_unavailable", f"the event's attribute {name[:64]} is too long for Pub/Sub")
    if len(message.data) + sum(sum(sizes) for _, *sizes in attributes) > LARGEST_MESSAGE:
        raise RetryLater("sink_unavailable", f"the event is larger than {LARGEST_MESSAGE} bytes, too large for Pub/Sub")


def _wrong(error: Exception) -> str:
    return google_errors.wrong(error, api="Pub/Sub", undone="cannot be published to", table=_WRONG)
