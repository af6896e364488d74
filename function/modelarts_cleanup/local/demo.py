"""The command `demo`: plays one event of every kind on this machine, and sees that each ends as it should."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from modelarts_cleanup.local.delivery import Answer, deliver
from modelarts_cleanup.local.function_process import FunctionProcess, function_folder
from modelarts_cleanup.local.samples import Samples, samples
from modelarts_cleanup.local.scenes import End, Scene, Told, scenes
from modelarts_cleanup.local.screen import CommandError, cell, screen, table, word, write_json
from modelarts_cleanup.local.simulator import Call
from modelarts_cleanup.local.stage import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """How a scene went: the end of each delivery, the DELETEs that ModelArts was sent, and what went otherwise."""

    about: str
    ends: tuple[End, ...]
    deletes: int
    milliseconds: int
    problems: tuple[str, ...]


@click.command()
@click.option("--events", "events_folder", metavar="DIR", help="The folder `events` of a checkout, if run elsewhere.")
@click.option("--function", "folder", metavar="DIR", help="The folder `function` of a checkout, if run elsewhere.")
@click.option(
    "--json", "as_json", is_flag=True, help="Write one JSON document at the end, instead of lines and a table."
)
def demo(*, events_folder: str | None, folder: str | None, as_json: bool) -> None:
    """
    Play one event of every kind on this machine.

    The function is served by the Functions Framework in a process of its own, and works on a simulated ModelArts,
    with its ledger and its sink in a temporary folder. The events are the samples of `events/`, and some more for
    what ModelArts does wrong. Nothing outside of this machine is called, and no setting of the environment is used.

    Each line says what happened to one delivery; the table says it again for each event. Ends with 0 if every event
    ended as it should, exactly the right completion events were told, and ModelArts was sent exactly the right
    DELETEs; otherwise it says what was different, and ends with 1.
    """
    main = function_folder(folder)
    given = samples(events_folder)
    if datetime.now(UTC) < given.now:
        raise CommandError(f"the time of the samples is not up before {given.now}, by this machine's clock")
    shown = None if as_json else screen()
    started = time.monotonic()
    with Stage() as stage, ExitStack() as processes:
        played, problems = _play(stage, given, main, processes, shown)
        told = stage.completions()
        effective = stage.simulator.count_effective_deletes()
    seconds = round(time.monotonic() - started, 1)
    right = not problems
    summary = f"{len(played)} events, {len(told)} completion events, {effective} clusters deleted, in {seconds} s"
    if shown is None:
        write_json(
            {
                "ok": right,
                "problems": problems,
                "events": [asdict(one) for one in played],
                "completion_events": told,
                "clusters_deleted": effective,
                "seconds": seconds,
            }
        )
    else:
        _show_table(shown, played)
        for problem in problems:
            shown.print(word("wrong"), cell(problem))
        shown.print(word("ok" if right else "wrong").append(f": {summary}", ""))
    if not right:
        click.get_current_context().exit(1)


def _play(
    stage: Stage, given: Samples, main: Path, processes: ExitStack, shown: Console | None
) -> tuple[list[Played], list[str]]:
    planned = list(scenes(given))
    functions = _functions(stage, given, planned, main, processes)
    played = [_scene(scene, stage, functions[_key(scene.settings)], shown) for scene in planned]
    problems = [f"{one.about} {problem}" for one in played for problem in one.problems]
    problems += _differences([scene.told for scene in planned if scene.told], stage.completions())
    return played, problems


def _functions(
    stage: Stage, given: Samples, planned: list[Scene], main: Path, processes: ExitStack
) -> Mapping[str, FunctionProcess]:
    """Serve the function once for each set of settings; they start side by side, and share ledger and sink."""
    wanted = {_key(scene.settings): {**given.settings, **scene.settings} for scene in planned}
    started = {
        key: FunctionProcess(main, stage.settings(changed), on_line=lambda _line: None)
        for key, changed in wanted.items()
    }
    for function in started.values():
        processes.callback(function.stop)
    for function in started.values():
        processes.callback(function.ask_to_end)  # all of them first, then each is waited for
        function.wait_until_serving()
    return started


def _key(settings: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(settings.items()))


def _scene(scene: Scene, stage: Stage, function: FunctionProcess, shown: Console | None) -> Played:
    scene.prepare(stage)
    deletes = stage.simulator.count(Call.DELETE_CLUSTER)
    started = time.monotonic()
    ends: list[End] = []
    for sent in scene.sent:
        answer = deliver(sent, function.url)
        ends.append(_end(answer))
        if shown is not None:
            detail = answer.body.get("detail", "")
            shown.print(_coloured(ends[-1]), cell(f"[{sent.event_id()}]", "dim"), cell(detail), soft_wrap=True)
    milliseconds = round((time.monotonic() - started) * 1000)
    sent_deletes = stage.simulator.count(Call.DELETE_CLUSTER) - deletes
    return Played(
        about=scene.about,
        ends=tuple(ends),
        deletes=sent_deletes,
        milliseconds=milliseconds,
        problems=tuple(_problems(scene, ends, sent_deletes)),
    )


def _end(answer: Answer) -> End:
    return End(answer.outcome, answer.reason, answer.body.get("duplicate") is True)


def _problems(scene: Scene, ends: list[End], deletes: int) -> Iterator[str]:
    for number, (end, expected) in enumerate(zip(ends, scene.ends, strict=True), 1):
        if end != expected:
            yield f"Delivery {number} ended as {end}, and not as {expected}."
    if deletes != scene.deletes:
        yield f"ModelArts was sent {deletes} DELETEs, and not {scene.deletes}."


def _differences(expected: list[Told], completions: list[Mapping[str, object]]) -> Iterator[str]:
    """Say which completion events are missing, and which are too many."""
    ids = {told.cause: told.id for told in expected if told.id}
    wanted = Counter(expected)
    found = Counter(_told(completion, ids) for completion in completions)
    for told in wanted - found:
        yield f"No completion event tells that {told.cause} ended as {End(told.outcome, told.reason)}."
    for told in found - wanted:
        yield f"A completion event too many tells that {told.cause} ended as {End(told.outcome, told.reason)}."


def _told(completion: Mapping[str, object], ids: Mapping[str, str]) -> Told:
    data = completion["data"]
    fields: Mapping[str, object] = data if isinstance(data, dict) else {}
    about = fields.get("cause")
    cause = str(about.get("id")) if isinstance(about, dict) else ""
    reason = fields.get("reason")
    return Told(
        cause=cause,
        outcome=str(fields.get("outcome")),
        reason=None if reason is None else str(reason),
        id=str(completion["id"]) if cause in ids else None,
    )


def _coloured(end: End) -> Text:
    return word(end.outcome, end.reason).append(" (duplicate)" if end.duplicate else "", "dim")


def _show_table(shown: Console, played: list[Played]) -> None:
    rows = table("event", "deliveries", "ends", "DELETEs", "ms", "")
    for one in played:
        ends = word("")
        for number, end in enumerate(dict.fromkeys(one.ends)):
            ends.append(", then " if number else "").append_text(_coloured(end))
        right = word("wrong" if one.problems else "ok")
        rows.add_row(cell(one.about), str(len(one.ends)), ends, str(one.deletes), str(one.milliseconds), right)
    shown.print()
    shown.print(rows)
