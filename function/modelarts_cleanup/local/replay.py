"""The command `replay`: sends again what dead letters, or `failed` and `rejected` completion events, hold."""

import fcntl
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from modelarts_cleanup import places
from modelarts_cleanup.local.delivery import deliver, read_bytes
from modelarts_cleanup.local.pubsub import Letter, Pubsub
from modelarts_cleanup.local.replayable import Replayable, of_file, of_letter
from modelarts_cleanup.local.screen import CommandError, cell, screen, show, table, word, write_json
from modelarts_cleanup.model import instant_text

_SUBSCRIPTION: Final = re.compile(r"projects/[^/]+/subscriptions/[^/]+")
_OK: Final = 200


@dataclass(frozen=True, slots=True)
class Replayed:
    """
    How it went with one event.

    `sent`, now; `already` sent before; `kept`, not sent yet; `retry`, not taken; `wrong`, could not be sent;
    `useless` or `unusable`, not to be sent.
    """

    key: str
    about: str
    state: str
    detail: str


class Memory:
    """What was replayed before, one JSON line each; a line is written as soon as its event was taken."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._keys = self._read()

    def _read(self) -> set[str]:
        try:
            lines = self.file.read_text().splitlines() if self.file.exists() else []
            return {str(json.loads(line)["key"]) for line in lines}
        except (OSError, ValueError, KeyError, TypeError):
            raise CommandError(
                f"{self.file} cannot be read as what was replayed before; name another with --remember"
            ) from None

    @contextmanager
    def held(self) -> Iterator[None]:
        """
        Keep the file for this process alone, and know what others have replayed meanwhile.

        Raises `CommandError` before anything is sent that could not be remembered.
        """
        try:
            file = self.file.open("a")
        except OSError as error:
            raise CommandError(f"{self.file} cannot be written to, so nothing is sent: {error.strerror}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise CommandError(f"another replay is at work with {self.file}, so nothing is sent") from None
            self._keys = self._read()
            yield

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def add(self, key: str, to: str) -> None:
        """Remember. Raises `CommandError`: what cannot be remembered must not go on."""
        line = json.dumps({"key": key, "to": to, "at": instant_text(datetime.now(UTC))})
        try:
            with self.file.open("a") as file:
                file.write(line + "\n")
        except OSError as error:
            raise CommandError(f"{key} was sent, but {self.file} cannot be written to: {error.strerror}") from None
        self._keys.add(key)


@click.command()
@click.argument("source")
@click.option("--to", help="Where to send: the function's http(s) URL, or pubsub://projects/P/topics/T.")
@click.option("--yes", is_flag=True, help="Send without asking.")
@click.option("--all", "everything", is_flag=True, help="Send also what this version would reject again.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="Pull at most so many.")
@click.option("--remember", metavar="FILE", help="Where to remember what was sent; beside SOURCE if not given.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON document; without --yes nothing is sent.")
def replay(
    source: str, *, to: str | None, yes: bool, everything: bool, limit: int, remember: str | None, as_json: bool
) -> None:
    """
    Send again what could not be done.

    SOURCE is a subscription, projects/P/subscriptions/S, with dead letters or completion events, or a file of
    either: completion events and expiry events as structured CloudEvents, one a line, and messages as
    `gcloud pubsub subscriptions pull S --format=json` writes them. A dead letter or an expiry event is sent as it
    is, and acknowledged once it was taken, if it was pulled; without --to, dead letters go to the topic that they
    came from. A `rejected` event is sent as it came, and a `failed` one is made again from what was told of it;
    both get a new id, derived from the old one, as the old one would only be answered with what was recorded for it.

    It shows what it will send, and asks. Nothing is sent twice: what was sent is remembered in a file beside
    SOURCE (for a subscription, in the present folder), and skipped the next time. Remove the file to send it all the
    same: the function's ledger still sees to it that nothing is done twice.

    Pub/Sub may hold some back: run it again until nothing is to be sent.

    Ends with 0 if everything was sent, now or before, and with 1 if something was not.
    """
    if source == "-":
        raise click.UsageError("SOURCE is a file or a subscription; what was sent is remembered beside it.")
    subscription = source if _SUBSCRIPTION.fullmatch(source) else None
    memory = Memory(
        Path(remember or (f"{source.replace('/', '.')}.replayed" if subscription else f"{source}.replayed"))
    )
    pubsub = Pubsub()
    with _letters(pubsub, subscription, limit) as letters:
        found = [of_letter(letter, source) for letter in letters] if subscription else _of_file(source)
        place = _place(to, pubsub, found) if found else ""
        planned = [_planned(one, memory, everything=everything) for one in found]
        sending = sum(one.state == "kept" for one in planned)
        if not as_json:
            _show(screen(), planned, f"To be sent to {place}" if sending else "Nothing is to be sent")
        if sending and not as_json:
            yes = yes or click.confirm(f"Send {sending} of these to {place}?")

        def let_go(letter: Letter) -> None:
            pubsub.acknowledge(source, letter)
            letters.remove(letter)

        with memory.held() if yes and sending else nullcontext():
            done = _sent(found, planned, place, pubsub=pubsub, memory=memory, let_go=let_go) if yes else planned
    if as_json:
        write_json(
            {"to": place, "sent": yes, "remembered_in": str(memory.file), "events": [asdict(one) for one in done]}
        )
    elif yes and sending:
        _show(screen(), done, f"Sent to {place}; remembered in {memory.file}")
    if any(one.state not in ("sent", "already") for one in done) and (yes or not as_json):
        click.get_current_context().exit(1)


@contextmanager
def _letters(pubsub: Pubsub, subscription: str | None, limit: int) -> Iterator[list[Letter]]:
    """Pull letters; those that are still in the list at the end are given back."""
    letters = pubsub.pull(subscription, limit=limit) if subscription else []
    try:
        yield letters
    finally:
        if subscription:
            pubsub.release(subscription, letters)


def _of_file(source: str) -> list[Replayable]:
    try:
        return of_file(read_bytes(source), source)
    except ValueError as error:
        raise CommandError(str(error)) from None


def _place(to: str | None, pubsub: Pubsub, found: Sequence[Replayable]) -> str:
    """Find where to send: where it is said, or where all dead letters come from."""
    if to is None:
        origins = {one.origin for one in found if one.origin is not None}
        if len(origins) != 1:
            raise CommandError("it does not say where all of this came from; name where to send it with --to")
        return f"pubsub://{pubsub.topic_of(origins.pop())}"
    if not to.startswith(("http://", "https://")):
        try:
            if isinstance(places.sink(to), places.TopicPlace):
                return to
        except ValueError:
            pass
        raise click.UsageError("--to is an http(s) URL, or pubsub://projects/P/topics/T.")
    return to


def _planned(one: Replayable, memory: Memory, *, everything: bool) -> Replayed:
    if one.key in memory:
        return Replayed(one.key, one.about, "already", "sent before")
    if one.problem:
        return Replayed(one.key, one.about, "unusable", one.problem)
    if one.doubt and not everything:
        return Replayed(one.key, one.about, "useless", f"{one.doubt} (--all sends it all the same)")
    return Replayed(one.key, one.about, "kept", "not sent yet")


def _sent(
    found: list[Replayable],
    planned: list[Replayed],
    place: str,
    *,
    pubsub: Pubsub,
    memory: Memory,
    let_go: Callable[[Letter], None],
) -> list[Replayed]:
    """Send what is planned, in order, up to the first that cannot be sent at all."""
    done: list[Replayed] = []
    broken = False
    for one, plan in zip(found, planned, strict=True):
        result = plan
        if plan.state == "kept" and one.key in memory:
            result = Replayed(plan.key, plan.about, "already", "sent meanwhile")
        elif plan.state == "kept" and not broken:
            state, detail = _send(one, place, pubsub)
            broken = state == "wrong"
            result = Replayed(plan.key, plan.about, state, detail)
            if state == "sent":
                memory.add(one.key, place)
        if result.state in ("sent", "already") and one.letter is not None:
            # Only now: what was sent may go, whatever else happens.
            let_go(one.letter)
        done.append(result)
    return done


def _send(one: Replayable, place: str, pubsub: Pubsub) -> tuple[str, str]:
    try:
        if place.startswith("pubsub://"):
            return "sent", f"as message {pubsub.publish(place.removeprefix('pubsub://'), one.data, one.attributes)}"
        answer = deliver(one.delivery, place)
    except CommandError as error:
        return "wrong", error.message
    told = f"{answer.outcome} {answer.reason or ''}".rstrip()
    return ("sent" if answer.status == _OK else "retry"), told


def _show(shown: Console, done: list[Replayed], title: str) -> None:
    rows = table("", "event", "")
    for one in done:
        rows.add_row(word(one.state), cell(one.about), cell(one.detail))
    show(shown, title, rows)
