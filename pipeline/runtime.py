"""Who runs the work: the Runtime protocol (units and gangs), the view of it that a stage gets, and LocalRuntime."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError, Interrupted
from pipeline.manifest import UnitRecord
from pipeline.memory import watching
from pipeline.units import MakeWorker, Unit, UnitStore


@dataclass(frozen=True)
class Rank:
    """One member of a gang, and where the others are."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    node_rank: int
    device: str
    """`cpu` or `cuda:0`."""
    main_address: str
    main_port: int
    threads: int
    attempt: str
    """Grows with every start of the gang, in this run and in later ones: an orphan of an older one may not commit."""


class Reporter(Protocol):
    """How running work talks to the driver."""

    def progress(self, done: int, total: int, numbers: Mapping[str, float]) -> None:
        """Say how far it is, with the numbers worth watching."""

    def history(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Publish measured rows, each with its `step`, once the checkpoint that holds them is committed."""

    def picture(self, name: str, data: bytes, step: int) -> None:
        """Publish a PNG."""

    def warn(self, message: str) -> None:
        """Announce a fallback or oddity."""

    def stopping(self) -> bool:
        """Whether the user asked to leave: checkpoint, then raise Interrupted."""


@dataclass(frozen=True)
class Devices:
    """What a piece of work keeps busy: so many GPUs, or so many processes on CPUs."""

    kind: Literal["cpu", "gpu"]
    number: int


@dataclass(frozen=True)
class GangStart:
    """One start of a gang, and what came of it."""

    attempt: str
    ranks: int
    nodes: int
    seconds: float
    ended: str
    """`finished`, or why it did not."""


Loop = Callable[[Rank, Reporter], Any]
"""What each rank of a gang runs. Picklable; rank 0's return value is the gang's."""


class Runtime(Protocol):
    """Executes units and gangs; does not know what they do."""

    @property
    def cluster(self) -> ClusterConfig:
        """Where and how fast."""

    def map_units(
        self, store: UnitStore, make_worker: MakeWorker, units: Sequence[Unit], reporter: Reporter, *, gpu: bool
    ) -> Iterator[UnitRecord]:
        """Make and commit all units, yielding their records as they come."""

    def run_gang(self, loop: Loop, reporter: Reporter, attempt: int) -> Any:
        """Run equal ranks until all return; a death restarts them all."""

    def gang_starts(self) -> Sequence[GangStart]:
        """How the last gang was started, again and again where ranks died."""

    def devices(self, *, units: int | None, gpu: bool = True) -> Devices:
        """What a map over so many units keeps busy, or a gang (None). Asked once the work has been started."""

    def close(self) -> None:
        """Let go of what was started."""


@dataclass(frozen=True)
class BoundRuntime:
    """A runtime as one stage sees it: its progress and metrics go to that stage's place."""

    runtime: Runtime
    reporter: Reporter
    attempt: int = 1
    device_seconds: dict[str, float] = field(default_factory=dict)
    """What the stage's units and gangs have cost so far: seconds times devices, by their kind."""
    gang_starts: list[GangStart] = field(default_factory=list)
    """Every start of the stage's gangs in this attempt."""

    @property
    def cluster(self) -> ClusterConfig:
        """Where and how fast."""
        return self.runtime.cluster

    def map_units(
        self,
        store: UnitStore,
        make_worker: MakeWorker,
        units: Sequence[Unit],
        *,
        label: str,
        finished: int = 0,
        gpu: bool = True,
        rate_of: str | None = None,
    ) -> Iterator[UnitRecord]:
        """Make units; `gpu=False` for work that never uses one. Stages call `output.map_units` instead."""
        total = finished + len(units)
        self.reporter.progress(finished, total, {})
        if not units:
            return
        started, counted = time.monotonic(), 0
        with watching({"unit_workers": self.cluster.unit_workers}):
            for done, record in enumerate(
                self.runtime.map_units(store, make_worker, units, self.reporter, gpu=gpu), start=finished + 1
            ):
                counted += record.counts[rate_of] if rate_of else 0
                rate = {f"{rate_of}/s": counted / (time.monotonic() - started)} if rate_of else {}
                self.reporter.progress(done, total, rate)
                yield record
        self._account(self.runtime.devices(units=len(units), gpu=gpu), time.monotonic() - started)

    def run_gang(self, loop: Loop, *, label: str = "") -> Any:
        """Run `loop(rank, reporter)` on every rank; return what rank 0 returned."""
        with watching({"micro_batch": self.cluster.micro_batch}):
            answer = self.runtime.run_gang(loop, self.reporter, self.attempt)
        starts = self.runtime.gang_starts()
        kind = self.runtime.devices(units=None).kind
        for start in starts:
            self._account(Devices(kind, start.ranks), start.seconds)
        self.gang_starts.extend(starts)
        return answer

    def _account(self, devices: Devices, seconds: float) -> None:
        before = self.device_seconds.get(devices.kind, 0.0)
        self.device_seconds[devices.kind] = before + devices.number * seconds


@dataclass(frozen=True)
class LocalRuntime:
    """Everything in this process: for tests, for debugging, for machines without Ray."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    _gang: list[GangStart] = field(default_factory=list, compare=False)

    def map_units(
        self, store: UnitStore, make_worker: MakeWorker, units: Sequence[Unit], reporter: Reporter, *, gpu: bool = True
    ) -> Iterator[UnitRecord]:
        """Make the units one after another."""
        worker = make_worker("cuda:0" if gpu and visible_gpus() else "cpu")
        for unit in units:
            if reporter.stopping():
                raise Interrupted
            yield store.make(unit, worker)

    def run_gang(self, loop: Loop, reporter: Reporter, attempt: int) -> Any:
        """Run a gang of one."""
        if self.cluster.ranks is not None and self.cluster.ranks[0] > 1:
            raise ConfigError(
                f"cluster.num_workers={self.cluster.num_workers} needs several processes: use --runtime ray, "
                "or set cluster.num_workers=1"
            )
        rank = Rank(
            rank=0,
            world=1,
            local_rank=0,
            local_world=1,
            node_rank=0,
            device="cuda:0" if visible_gpus() else "cpu",
            main_address="127.0.0.1",
            main_port=0,
            threads=self.cluster.threads or available_cores(),
            attempt=attempt_name(attempt, 0),
        )
        started = time.monotonic()
        answer = loop(rank, reporter)
        self._gang[:] = [GangStart(rank.attempt, 1, 1, time.monotonic() - started, "finished")]
        return answer

    def gang_starts(self) -> Sequence[GangStart]:
        """How the last gang was started: once."""
        return self._gang

    def devices(self, *, units: int | None, gpu: bool = True) -> Devices:
        """This process, or the first GPU."""
        return Devices("gpu" if gpu and visible_gpus() else "cpu", 1)

    def close(self) -> None:
        """Nothing was started."""


def attempt_name(run: int, restart: int) -> str:
    """Name a start of a gang so that later ones sort after earlier ones."""
    return f"{run:06d}-{restart:03d}"


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> int:
    """Return how many NVIDIA GPUs this process may use, without importing torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([part for part in chosen.split(",") if part.strip() not in ("", "-1")])
    devices = Path("/dev")
    return sum(bool(re.fullmatch(r"nvidia\d+", entry.name)) for entry in devices.iterdir()) if devices.exists() else 0
