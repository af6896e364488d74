"""Reads the samples of `events/`: expiry events with how each of them ends, and the ways to send one."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from modelarts_cleanup.local.delivery import Delivery, delivery
from modelarts_cleanup.local.function_process import PACKAGE
from modelarts_cleanup.local.screen import CommandError
from modelarts_cleanup.model import ClusterType


class SampleMember(msgspec.Struct, frozen=True):
    """A supernode of a sample's cluster."""

    id: str
    name: str | None
    status: str
    prepaid: bool


class SampleRefusal(msgspec.Struct, frozen=True):
    """How ModelArts refuses the DELETE."""

    status: int
    code: str


class SampleCluster(msgspec.Struct, frozen=True):
    """The cluster that ModelArts has when a sample is sent."""

    type: ClusterType
    name: str
    members: tuple[SampleMember, ...] = ()
    on_delete: SampleRefusal | Literal["stays"] | None = None


class _Listed(msgspec.Struct, frozen=True):
    name: str
    about: str
    cluster: SampleCluster | None
    settings: dict[str, str] = msgspec.field(default_factory=dict)


class _Index(msgspec.Struct, frozen=True):
    now: datetime
    settings: dict[str, str]
    samples: tuple[_Listed, ...]


class _CompletionData(msgspec.Struct, frozen=True):
    outcome: str
    reason: str | None


class Completion(msgspec.Struct, frozen=True):
    """As much of a completion event as is the same whenever it is published."""

    id: str
    data: _CompletionData


class _ExpiryData(msgspec.Struct, frozen=True):
    project_id: str
    cluster_id: str


class _Expiry(msgspec.Struct, frozen=True):
    data: _ExpiryData


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An expiry event, the cluster it meets, the settings it needs beside the common ones, and its end."""

    name: str
    about: str
    sent: Delivery
    project_id: str
    cluster_id: str
    cluster: SampleCluster | None
    settings: Mapping[str, str]
    completion: Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """All samples, made for a present `now`; `ways` are requests that all tell the same expiry, by what they show."""

    now: datetime
    settings: Mapping[str, str]
    samples: tuple[Sample, ...]
    ways: Mapping[str, Delivery]


def samples(given: str | None, *, package: Path = PACKAGE) -> Samples:
    """Read the samples of a checkout's folder `events`, found as the function's is. Raises `CommandError`."""
    beside = package.parent.parent / "events"
    here = Path("events").absolute()
    folder = (Path(given) if given else beside if beside.is_dir() else here) / "samples"
    try:
        index = msgspec.json.decode((folder / "index.json").read_bytes(), type=_Index)
        listed = tuple(_sample(folder, one) for one in index.samples)
        requests = sorted((folder / "requests" / "understood").glob("*.json"))
        ways = {path.stem: delivery(path.read_bytes()) for path in requests}
    except (OSError, msgspec.DecodeError) as error:
        raise CommandError(
            f"no samples can be read from {folder} ({error}): they are no part of the installed package. "
            "Run this from a checkout, or name the checkout's folder `events` with --events DIR."
        ) from None
    return Samples(now=index.now, settings=index.settings, samples=listed, ways=ways)


def _sample(folder: Path, listed: _Listed) -> Sample:
    text = (folder / "expiry" / f"{listed.name}.json").read_bytes()
    about = msgspec.json.decode(text, type=_Expiry).data
    completion = (folder / "completion" / f"{listed.name}.json").read_bytes()
    return Sample(
        name=listed.name,
        about=listed.about,
        sent=delivery(text),
        project_id=about.project_id,
        cluster_id=about.cluster_id,
        cluster=listed.cluster,
        settings=listed.settings,
        completion=msgspec.json.decode(completion, type=Completion),
    )
