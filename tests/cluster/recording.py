"""Which rank asked for which samples at which step, and which of that is part of the training that was committed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from pipeline.ray_runtime import RayRuntime
from pipeline.runtime import LocalRuntime, Loop, Rank, Reporter
from stages.data.order import Order

Sample = tuple[int, int, int]
"""Position, shard, index within it."""


def recorded(loop: Loop, folder: str, pause: float, rank: Rank, reporter: Reporter) -> Any:
    """Run a rank's loop and write down the samples of each of its steps; `pause` seconds make a step long."""
    path = Path(folder) / f"{rank.attempt}-{rank.rank:02d}.jsonl"
    asked = Order.batch

    def batch(order: Order, step: int, global_batch: int, number: int, world: int) -> list[Sample]:
        samples = asked(order, step, global_batch, number, world)
        if number == rank.rank:
            row = {"step": step, "time": time.time(), "world": world, "samples": samples}
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            time.sleep(pause)
        return samples

    (Path(folder) / f"{rank.attempt}-{rank.rank:02d}.pid").write_text(json.dumps([os.getpid(), _node()]))
    with mock.patch.object(Order, "batch", batch):
        return loop(rank, reporter)


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


@dataclass
class HeardReporter:
    """Passes on to another, and remembers what was warned of when."""

    inner: Reporter
    warnings: list[tuple[float, str]]

    def progress(self, done: int, total: int, numbers: Mapping[str, float]) -> None:
        self.inner.progress(done, total, numbers)

    def history(self, rows: Sequence[Mapping[str, float]]) -> None:
        self.inner.history(rows)

    def picture(self, name: str, data: bytes, step: int) -> None:
        self.inner.picture(name, data, step)

    def warn(self, message: str) -> None:
        self.warnings.append((time.time(), message))
        self.inner.warn(message)

    def stopping(self) -> bool:
        return self.inner.stopping()


@dataclass
class RecordingRay(RayRuntime):
    """A RayRuntime whose gangs are recorded."""

    records: str = ""
    pause: float = 0.0
    warnings: list[tuple[float, str]] = field(default_factory=list)

    def run_gang(self, loop: Loop, reporter: Reporter, attempt: int) -> Any:
        heard = HeardReporter(reporter, self.warnings)
        return super().run_gang(partial(recorded, loop, self.records, self.pause), heard, attempt)


@dataclass(frozen=True)
class RecordingLocal(LocalRuntime):
    """The same without Ray."""

    records: str = ""

    def run_gang(self, loop: Loop, reporter: Reporter, attempt: int) -> Any:
        return super().run_gang(partial(recorded, loop, self.records, 0.0), reporter, attempt)


@dataclass(frozen=True)
class Row:
    """What one rank asked for at one step."""

    attempt: str
    rank: int
    world: int
    step: int
    time: float
    samples: tuple[Sample, ...]


def rows_of(folder: Path) -> list[Row]:
    """Read everything that was recorded so far; a line half written is left out."""
    rows = []
    for path in sorted(folder.glob("*.jsonl")):
        attempt, _, rank = path.stem.rpartition("-")
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                row = json.loads(line)
                samples = tuple((a, b, c) for a, b, c in row["samples"])
                rows.append(Row(attempt, int(rank), row["world"], row["step"], row["time"], samples))
    return rows


def committed_history(rows: Sequence[Row], steps: int) -> list[list[Sample]]:
    """Return the samples of each step of the training that counts, in the order of the ranks.

    A start of the gang goes on from a committed checkpoint: what earlier starts did from that step on does not count.
    """
    first = {attempt: min(row.step for row in rows if row.attempt == attempt) for attempt in {r.attempt for r in rows}}
    history = []
    for step in range(steps):
        counts = max(attempt for attempt, start in first.items() if start <= step)
        of_step = {row.rank: row for row in rows if row.attempt == counts and row.step == step}
        worlds = {row.world for row in of_step.values()}
        assert len(worlds) == 1 and len(of_step) == worlds.pop(), f"step {step} of attempt {counts}: {sorted(of_step)}"
        history.append([sample for rank in sorted(of_step) for sample in of_step[rank].samples])
    return history


def check_exactly_once(history: Sequence[Sequence[Sample]], batch_size: int, counts: Sequence[int], seed: int) -> int:
    """Assert that each sample was seen exactly once an epoch and in the order's order; return how many were seen."""
    seen = [sample for step in history for sample in step]
    assert [len(step) for step in history] == [batch_size] * len(history)
    assert [position for position, _, _ in seen] == list(range(len(seen))), "a position is missing, twice, or misplaced"
    everyone = {(shard, index) for shard, count in enumerate(counts) for index in range(count)}
    for start in range(0, len(seen), len(everyone)):
        epoch = [(shard, index) for _, shard, index in seen[start : start + len(everyone)]]
        assert len(set(epoch)) == len(epoch), "a sample came twice in an epoch"
        assert len(epoch) < len(everyone) or set(epoch) == everyone, "a sample did not come in an epoch"
    order = Order(counts, seed=seed)
    assert [(shard, index) for _, shard, index in seen] == [order.at(position) for position in range(len(seen))]
    return len(seen)
