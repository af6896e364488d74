"""Speaks to Pub/Sub for a person: tries a topic, pulls dead letters, publishes them again; errors become words."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

from modelarts_cleanup.local.screen import CommandError

if TYPE_CHECKING:
    from google.pubsub_v1.services.publisher import PublisherClient
    from google.pubsub_v1.services.subscriber import SubscriberClient

SECONDS: Final = 10.0
# How long a pull waits for more before all counts as pulled.
PULL_SECONDS: Final = 3.0
# As long as Pub/Sub allows a person to look at what is to be sent.
KEPT_SECONDS: Final = 600
# What Pub/Sub writes on a dead letter: which subscription gave it up.
_FROM: Final = "CloudPubSubDeadLetterSourceSubscription"
_FROM_PROJECT: Final = "CloudPubSubDeadLetterSourceSubscriptionProject"
_PUBLISH: Final = "pubsub.topics.publish"
_CONSUME: Final = "pubsub.subscriptions.consume"

# By the names of google.rpc.Code.
_WRONG: Final = {
    "NOT_FOUND": "does not exist",
    "UNAUTHENTICATED": "cannot be used: Google does not accept this identity",
    "INVALID_ARGUMENT": "has a name, or is given something, that Pub/Sub does not take",
    "RESOURCE_EXHAUSTED": "cannot be used now: the quota of Pub/Sub is used up",
    "UNAVAILABLE": "cannot be reached",
    "DEADLINE_EXCEEDED": "cannot be reached in time",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A message that was pulled and is not acknowledged yet; one that was read from a file has no `ack_id`."""

    message_id: str
    ack_id: str = field(default="", repr=False)
    data: bytes = field(repr=False)
    attributes: Mapping[str, str]

    @property
    def origin(self) -> str | None:
        """Name the subscription that gave it up, if it is a dead letter."""
        name, project = self.attributes.get(_FROM), self.attributes.get(_FROM_PROJECT)
        return f"projects/{project}/subscriptions/{name}" if name and project else None


class PubsubError(CommandError):
    """Pub/Sub does not do what it is asked; `code` is Google's name for why, if it gave one."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class Pubsub:
    """
    Pub/Sub, by full names of topics and subscriptions. Every method raises `PubsubError`.

    `PUBSUB_EMULATOR_HOST` is honoured, by the clients themselves.
    """

    def try_topic(self, name: str) -> None:
        """See that a topic is there and may be published to, and publish nothing."""
        with _words(f"the topic {name}", "pubsub.topics.get"):
            if os.environ.get("PUBSUB_EMULATOR_HOST"):  # it knows of no rights
                self._publisher.get_topic(topic=name, retry=None, timeout=SECONDS)
                return
            request = {"resource": name, "permissions": [_PUBLISH]}
            granted = self._publisher.test_iam_permissions(request=request, retry=None, timeout=SECONDS).permissions
        if _PUBLISH not in granted:
            raise PubsubError(f"the topic {name} may not be published to by this identity ({_PUBLISH} is missing)")

    def publish(self, topic: str, data: bytes, attributes: Mapping[str, str]) -> str:
        """Publish a message, and give its id once it is stored."""
        with _words(f"the topic {topic}", _PUBLISH):
            from google.pubsub_v1.types import PubsubMessage  # noqa: PLC0415 - Google's, so only when needed

            message = PubsubMessage(data=data, attributes=attributes)
            sent = self._publisher.publish(topic=topic, messages=[message], retry=None, timeout=SECONDS)
        return str(sent.message_ids[0])

    def pull(self, subscription: str, *, limit: int) -> list[Letter]:
        """Pull what a subscription holds; nobody else gets it for `KEPT_SECONDS`."""
        found: list[Letter] = []
        while len(found) < limit:
            received = self._pull_some(subscription, limit - len(found))
            if not received:
                break
            self._keep(subscription, [letter.ack_id for letter in received], seconds=KEPT_SECONDS)
            found += received
        return found

    def release(self, subscription: str, letters: Sequence[Letter]) -> None:
        """Give back what was pulled and not sent: others get it at once."""
        if letters:
            self._keep(subscription, [letter.ack_id for letter in letters], seconds=0)

    def acknowledge(self, subscription: str, letter: Letter) -> None:
        """Let a message go for good."""
        with _words(f"the subscription {subscription}", _CONSUME):
            self._subscriber.acknowledge(subscription=subscription, ack_ids=[letter.ack_id], timeout=SECONDS)

    def topic_of(self, subscription: str) -> str:
        """Tell which topic a subscription reads."""
        with _words(f"the subscription {subscription}", "pubsub.subscriptions.get"):
            found = self._subscriber.get_subscription(subscription=subscription, retry=None, timeout=SECONDS)
        return str(found.topic)

    def _pull_some(self, subscription: str, most: int) -> list[Letter]:
        try:
            with _words(f"the subscription {subscription}", _CONSUME):
                from google.pubsub_v1.types import PullRequest  # noqa: PLC0415 - Google's, so only when needed

                request = PullRequest(subscription=subscription, max_messages=most)
                answer = self._subscriber.pull(request, retry=None, timeout=PULL_SECONDS)
        except PubsubError as error:
            if error.code == "DEADLINE_EXCEEDED":  # nothing more came
                return []
            raise
        return [
            Letter(
                message_id=received.message.message_id,
                ack_id=received.ack_id,
                data=received.message.data,
                attributes=dict(received.message.attributes),
            )
            for received in answer.received_messages
        ]

    def _keep(self, subscription: str, ack_ids: Sequence[str], *, seconds: int) -> None:
        with _words(f"the subscription {subscription}", _CONSUME):
            self._subscriber.modify_ack_deadline(
                subscription=subscription, ack_ids=list(ack_ids), ack_deadline_seconds=seconds, timeout=SECONDS
            )

    @cached_property
    def _publisher(self) -> "PublisherClient":
        from google.pubsub_v1.services.publisher import (  # noqa: PLC0415 - Google's, so only when needed
            PublisherClient,
        )

        return PublisherClient()

    @cached_property
    def _subscriber(self) -> "SubscriberClient":
        from google.pubsub_v1.services.subscriber import (  # noqa: PLC0415 - Google's, so only when needed
            SubscriberClient,
        )

        return SubscriberClient()


@contextmanager
def _words(place: str, right: str) -> Iterator[None]:
    """Turn Google's errors into words that an operator can act on; nothing of an error's own text is passed on."""
    from google.api_core.exceptions import GoogleAPIError  # noqa: PLC0415 - Google's, so only when needed
    from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415 - Google's, so only when needed

    try:
        yield
    except GoogleAPIError as error:
        code = str(getattr(getattr(error, "grpc_status_code", None), "name", None))
        if getattr(error, "reason", None) == "SERVICE_DISABLED":  # it comes as PERMISSION_DENIED
            wrong = "cannot be used: the API of Pub/Sub is not enabled in its project"
        elif code == "PERMISSION_DENIED":
            wrong = f"may not be used by this identity ({right} is missing)"
        else:
            wrong = _WRONG.get(code, f"cannot be used: {type(error).__name__}")
        raise PubsubError(f"{place} {wrong}", code) from None
    except GoogleAuthError as error:
        kind = type(error).__name__
        raise PubsubError(f"{place} cannot be used: this process has no Google identity ({kind})") from None
