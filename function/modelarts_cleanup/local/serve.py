"""The command `serve`: a whole deployment on this machine that stays up, to send events to by hand."""

import json
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Final

import click
from rich.console import Console

from modelarts_cleanup import events, settings
from modelarts_cleanup.local import effective
from modelarts_cleanup.local.function_process import FunctionProcess, LogLine, function_folder, port_problem
from modelarts_cleanup.local.samples import samples
from modelarts_cleanup.local.scenes import put
from modelarts_cleanup.local.screen import CommandError, cell, screen, show, table, word, write_json
from modelarts_cleanup.local.simulator import SimulatedCluster
from modelarts_cleanup.local.stage import Stage
from modelarts_cleanup.local.world import VisibleFor
from modelarts_cleanup.model import instant_text

PORT: Final = 8080
_COMMAND: Final = "modelarts-cleanup"
# Where there are no samples.
_PROJECT: Final = "demo"
_CLUSTERS: Final = ("ci-1", "ci-2", "test-1", "prod-1")
_LINGERING: Final = timedelta(seconds=1)
_CHECKING_SECONDS: Final = 0.5
_CHANGEABLE: Final = tuple(name for name in effective.POLICY if name != "MODELARTS_REGION")


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=PORT, show_default=True, help="The port to serve on.")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help=f"Change a setting of the policy, like DRY_RUN=true: {', '.join(_CHANGEABLE)}.",
)
@click.option("--function", "folder", metavar="DIR", help="The folder `function` of a checkout, if run elsewhere.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON lines: first where it serves, then its log.")
def serve(*, port: int, changes: tuple[str, ...], folder: str | None, as_json: bool) -> None:
    """
    Serve the function on this machine until Ctrl-C.

    ModelArts, the ledger and the sink are simulated or stand in a temporary folder that goes away at the end; the
    settings of the environment are not used, so nothing real can be deleted. It prints where to send events, how to
    send one, and each line of the function's log.
    """
    main = function_folder(folder)
    if problem := port_problem(port):
        raise CommandError(f"port {port} cannot be served on: {problem}. Another one is chosen with --port.")
    shown = screen()
    with _stopped_by_signal() as stopped, Stage(lag=VisibleFor(_LINGERING)) as stage:
        world = _World(stage, main.parent / "events" / "samples")
        given = _settings(stage, world.settings, changes)

        def on_line(line: LogLine) -> None:
            if as_json:
                write_json(line)
            else:
                show_line(shown, line)

        with FunctionProcess(main, given, port=port, on_line=on_line) as function:
            if as_json:
                write_json({"url": function.url, "settings": given, "folder": str(stage.folder)})
            else:
                _show_start(shown, function.url, given, world)
            while not stopped.wait(_CHECKING_SECONDS):
                if function.ended():
                    raise CommandError(f"the function has ended by itself: {function.last_words()}")
    if not as_json:
        shown.print("Stopped; the folder is gone.")


def show_line(shown: Console, line: LogLine) -> None:
    """Show one line of the function's log."""
    at = datetime.now().astimezone().strftime("%H:%M:%S")
    about = word(line.get("outcome"), line.get("reason"))
    told = str(line.get("message", "")).partition(": ")[2]
    ids = " ".join(str(line[name]) for name in ("event_id", "project_id", "cluster_id") if line.get(name))
    about_it = cell(f"[{ids}; {line.get('duration_ms')} ms]", "dim")
    shown.print(cell(at, "dim"), about, cell(told), about_it, soft_wrap=True)


@contextmanager
def _stopped_by_signal() -> Iterator[threading.Event]:
    """Give what is set when the command is asked to end."""
    stopped = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _World:
    """
    What the simulated ModelArts holds: the clusters of the samples where there are some, and settings that fit.

    `free` are two clusters that no sample is about, and that may be deleted.
    """

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.folder = stage.folder
        self.sample: Path | None = None
        self.settings: Mapping[str, str] = {"ALLOWED_PROJECTS": _PROJECT, "ALLOWED_NAMES": "ci-*,test-*"}
        names: Sequence[str] = _CLUSTERS
        project = _PROJECT
        placed: list[SimulatedCluster | None] = []
        if folder.is_dir():
            given = samples(str(folder.parent))
            self.settings = given.settings
            self.sample = folder / "expiry" / "deleted.json"
            placed += [put(stage, sample) for sample in given.samples]
            names = _CLUSTERS[:2]
            project = self.settings["ALLOWED_PROJECTS"].partition(",")[0]
        added = [
            stage.simulator.add_cluster(project_id=project, name=name, cluster_id=f"cluster-{number}")
            for number, name in enumerate(names, 1)
        ]
        self.free = added[:2]
        # Two samples may be about one cluster.
        self.clusters = list({one.cluster_id: one for one in [*placed, *added] if one is not None}.values())


def _settings(stage: Stage, fitting: Mapping[str, str], changes: tuple[str, ...]) -> dict[str, str]:
    changed = dict(fitting)
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or name not in _CHANGEABLE:
            raise click.UsageError(f"--set takes NAME=VALUE, and NAME is one of {', '.join(_CHANGEABLE)}.")
        changed[name] = value
    try:
        return stage.settings(changed)
    except settings.SettingsError as error:
        raise effective.complaint(error.problems) from None


def _show_start(shown: Console, url: str, given: Mapping[str, str], world: _World) -> None:
    used = table("setting", "value", "")
    policy = effective.policy(given)
    everything = [*effective.policy_shown(given, policy), *effective.places_shown(given, given["MODELARTS_ENDPOINT"])]
    for setting in everything:
        used.add_row(setting.name, cell(setting.value), cell("default" if setting.is_default else "", "dim"))
    show(shown, "The settings of the function", used)
    there = table("project_id", "cluster_id", "type", "name")
    for cluster in world.clusters:
        there.add_row(cluster.project_id, cluster.cluster_id, cluster.type, cluster.name)
    show(shown, "The clusters of the simulated ModelArts", there)
    shown.print("Send an event:", style="bold")
    for line in _lines_to_copy(url, world):
        shown.print(f"  {line}", soft_wrap=True)  # a copied line must not be broken
    shown.print(f"Completion events: {world.folder}/completions.jsonl", soft_wrap=True)
    shown.print(word("ok").append(f": serving on {url} until Ctrl-C", ""), soft_wrap=True)


def _lines_to_copy(url: str, world: _World) -> Iterator[str]:
    """Give lines that can be run as they are, each about a cluster of its own: none of them supersedes another."""
    an_hour_ago = instant_text(datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1))
    echoed, curled = (
        shlex.quote(json.dumps({"project_id": one.project_id, "cluster_id": one.cluster_id, "expires_at": an_hour_ago}))
        for one in world.free
    )
    command = _command()
    there = "" if url.endswith(f":{PORT}/") else f" --url {url}"
    if world.sample:
        yield f"{command} send {shlex.quote(str(world.sample))}{there}  # or any sample beside it"
    yield f"echo {echoed} | {command} send -{there}"
    yield (
        f"curl -sS {url} -H 'ce-id: 1' -H 'ce-source: //me' -H 'ce-type: {events.EXPIRED}' "
        f"-H 'ce-specversion: 1.0' -H 'content-type: application/json' -d {curled}"
    )


def _command() -> str:
    """Name this command so that it is found where it was started."""
    started = sys.argv[0]
    if Path(started).name != _COMMAND or started == shutil.which(_COMMAND):
        return _COMMAND
    return shlex.quote(started)
