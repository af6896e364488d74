"""The command `send`: sends an event, or a signed webhook, and tells how it ended."""

import uuid
from datetime import UTC, datetime
from typing import Final

import click

from modelarts_cleanup import webhook
from modelarts_cleanup.local.delivery import Answer, Delivery, deliver, delivery, read_bytes
from modelarts_cleanup.local.screen import CommandError, cell, screen, word, write_json

URL: Final = "http://127.0.0.1:8080/"
_OK: Final = 200
_ACCEPTED: Final = 202


@click.command()
@click.argument("file")
@click.option("--url", default=URL, show_default=True, help="Where the function serves.")
@click.option("--id", "event_id", help="The id of the event; made up where FILE has none.")
@click.option("--source", help="The source of the event, beside its id.")
@click.option("--webhook", "as_webhook", is_flag=True, help="Send a signed webhook to the entry point `webhook`.")
@click.option("--secret-file", help="The file with the `whsec_…` secret that signs it; the first line counts.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON document instead of a line.")
def send(
    file: str,
    *,
    url: str,
    event_id: str | None,
    source: str | None,
    as_webhook: bool,
    secret_file: str | None,
    as_json: bool,
) -> None:
    """
    Send the event in FILE and print how it ended.

    FILE holds a structured CloudEvent, a Pub/Sub push, a sample of a request as in `events/`, or the data of an
    expiry event alone; `-` is standard input. An event that has no id is given a new one, so that it is judged
    afresh; the same --id again is a redelivery.

    Ends with 0 if the event is done with (answer 200, or 202 to a webhook), with 1 if it is to be sent again
    (503) or was refused, and with 2 if it could not be sent at all.
    """
    if as_webhook != (secret_file is not None):
        raise click.UsageError("--webhook and --secret-file are given together.")
    for option, given in (("--id", event_id), ("--source", source)):
        if given is not None and not _sendable(given, as_webhook=as_webhook):
            form = "1 to 256 visible ASCII characters" if as_webhook else "a text in Unicode"
            raise click.UsageError(f"{option} is not {form}.")
    text = read_bytes(file)
    if secret_file is None:
        sent = delivery(text, event_id=event_id, source=source)
        named = sent.event_id()
    else:
        named = event_id or f"msg_{uuid.uuid4().hex}"
        sent = _signed(delivery(text), named, secret_file)
    answer = deliver(sent, url)
    if as_json:
        write_json({"url": url, "id": named, "status": answer.status, "answer": answer.body})
    else:
        screen().print(_line(named, answer), soft_wrap=True)
    if answer.status not in (_OK, _ACCEPTED):
        click.get_current_context().exit(1)


def _signed(sent: Delivery, webhook_id: str, secret_file: str) -> Delivery:
    """Sign by the library of Standard Webhooks, as senders do."""
    now = datetime.now(UTC)
    try:
        signer = webhook.secrets(read_bytes(secret_file))[0]
        signature = signer.sign(webhook_id, now, sent.body.decode())
    except UnicodeDecodeError:
        raise CommandError("a webhook is JSON in UTF-8, and this file is not UTF-8") from None
    except ValueError as error:
        raise CommandError(f"the secret in {secret_file} {error}") from None
    headers = {
        "content-type": sent.headers.get("content-type", "application/json"),
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signature,
    }
    return Delivery(headers=headers, body=sent.body)


def _sendable(given: str, *, as_webhook: bool) -> bool:
    """Tell whether the function could take this: a webhook's id as it is, an event's attributes as any text."""
    if as_webhook:
        return webhook.ID.fullmatch(given) is not None
    return bool(given) and not any("\ud800" <= character <= "\udfff" for character in given)


def _line(event_id: str | None, answer: Answer) -> object:
    line = word(answer.outcome, answer.reason)
    if answer.status == _ACCEPTED:
        line = word("ok").append(": accepted", "")
    detail = answer.body.get("detail") or answer.body.get("problems") or ""
    line.append_text(cell(f": {detail}" if detail else ""))
    if answer.body.get("duplicate") is True:
        line.append_text(cell(" (duplicate: another event closed this expiry before)"))
    return line.append_text(cell(f"  [{event_id}]", "dim"))
