"""Measures how time and memory grow with the number of shards and of samples, on made-up indexes.

    python -m tests.growth [--shards 100,1000,10000,100000] [--samples-per-shard 1000]

The shards are holes of the right length: whoever opened one to plan or to count would fail. For each size it loads the
artifact as --status does, takes its fingerprint, plans the encode stage, opens the order of training, finds samples far
into it, commits a unit beside all others, and finishes a stage over them. Then the shards stay as many and only the
samples grow. A line a task: seconds at each size, the exponent of time fitted to the last three sizes by least squares
in logarithms, megabytes at the largest size and their exponent.
Listing a source's pictures and cutting them into shards is measured apart: it looks at every picture, always.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts import Artifact
from pipeline.config import StrictModel
from pipeline.manifest import FileEntry, UnitRecord, digest_of
from pipeline.output import Output
from pipeline.progress import metrics_text
from pipeline.runner import Runner
from pipeline.stage import Stage, fingerprint
from pipeline.storage import Folder, canonical_json
from pipeline.units import Unit, UnitStore
from pipeline.workdir import Workdir
from stages.data.order import Order
from stages.data.shards import ShardReader, open_split
from stages.encode import EncodeWork, plan
from stages.encoding.segments import Known, segments_of
from stages.models.vocabulary import TokenSpace

CLASSES = [f"class-{number}" for number in range(100)]
FITTED = 3
"""Sizes, the largest ones, that an exponent is fitted to: small ones measure what does not grow."""


class MadeUpConfig(StrictModel):
    """What a made-up artifact says it was made from."""

    shards: int
    samples: int


def nothing(config: Any, *, output: Any, runtime: Any) -> dict[str, Any]:
    """The work of stages that never run."""
    return {}


@dataclass(frozen=True)
class World:
    """A workdir with a finished, made-up shard artifact of so many shards and samples."""

    workdir: Workdir
    stage: Stage
    shards: int
    samples: int

    @classmethod
    def make(cls, folder: Path, shards: int, samples: int) -> World:
        """Write the manifest, a unit for each shard."""
        stage = Stage("shard", nothing, MadeUpConfig(shards=shards, samples=samples), {})
        world = cls(Workdir(Folder.at(folder)), stage, shards, samples)
        world.fill_store()
        output = world.output(stage)
        output._units += world.records()
        output.commit({"pictures": samples}, {"finished": "2026-01-31T00:00:00+0000"})
        world.workdir.point_latest(stage, fingerprint(stage.recipe({})))
        return world

    def output(self, stage: Stage) -> Output:
        """The artifact of a stage, being made."""
        recipe = stage.recipe({})
        mark = fingerprint(recipe)
        home = self.workdir.artifact_folder(stage, mark)
        store = self.workdir.store(stage)
        return Output(home, store, self.workdir.folder, stage.name, mark, recipe, print)

    def records(self) -> Iterator[UnitRecord]:
        """A record for each shard; its samples are spread evenly."""
        for number in range(self.shards):
            count = self.samples * (number + 1) // self.shards - self.samples * number // self.shards
            name = f"train-{number:06d}"
            key = hashlib.sha256(name.encode()).hexdigest()
            files = tuple(
                FileEntry(path=f"{name}.{ending}", bytes=3000 * count, sha256=key) for ending in ("idx", "json", "tar")
            )
            counts = {"samples": count, "bytes": 1, "rejects": []}
            yield UnitRecord(name=name, key=key, digest=digest_of(files), counts=counts, files=files)

    def fill_store(self) -> None:
        """Put each shard's files into its unit's folder, as long as they are said to be and all of them holes."""
        for record in self.records():
            home = self.workdir.store(self.stage).folder_of(record.key).path
            home.mkdir(parents=True)
            for entry in record.files:
                with (home / entry.path).open("wb") as file:
                    file.truncate(entry.bytes)

    def artifact(self) -> Artifact:
        """The finished artifact, read from its manifest."""
        found = self.workdir.find(self.stage, fingerprint(self.stage.recipe({})))
        assert found is not None
        return found


def tasks(world: World) -> dict[str, Callable[[], Any]]:
    """What is measured: name and a function that does it once. The first ones feed the later."""
    made: dict[str, Any] = {}

    def status() -> str:
        decision = Runner([world.stage], world.workdir).decide(world.stage)
        assert decision.artifact is not None
        return metrics_text(decision.artifact.metrics)

    def take_fingerprint() -> str:
        artifact = world.artifact()
        recipe = {"inputs": {"shards": digest_of(artifact.files)}}
        made["artifact"] = artifact
        return fingerprint(recipe)

    def plan_encode() -> list[str]:
        about = {"tokenizer": "0" * 64, "codebook_size": 512, "grid": (8, 8), "classes": CLASSES}
        segments = segments_of(EncodeWork().condition, Known(CLASSES, (8, 8), None, None, None))
        space = TokenSpace.model_validate({**about, "image_size": 64, "channels": 3, "condition": segments})
        units = plan(EncodeWork(), made["artifact"], space, None, None, None)
        store = UnitStore(world.workdir.folder / "units" / "encode", "encode", 1)
        missing = [unit for unit in units if store.find(unit) is None]
        assert len(missing) == world.shards
        return [store.key(unit) for unit in missing]

    def open_order() -> Order:
        split = open_split(made["artifact"], "train")
        made["order"] = Order([len(ShardReader(shard)) for shard in split], seed=1)
        assert made["order"].num_samples == world.samples
        return made["order"]

    def find_sample() -> tuple[int, int]:
        order: Order = made["order"]
        made["epoch"] = made.get("epoch", 0) + 1  # one that was not laid out before
        return order.at(world.samples * made["epoch"] + world.samples // 3)

    def commit_unit() -> UnitRecord:
        store = world.workdir.store(world.stage)
        return store.make(Unit("train-999999", {"n": time.perf_counter_ns()}), write_one)

    def finish() -> str:
        stage = Stage("encode", nothing, MadeUpConfig(shards=world.shards, samples=world.samples), {})
        output = world.output(stage)
        output._units += made["artifact"].units
        return output.commit({}, {"finished": ""}).digest

    return {
        "print the status": status,
        "fingerprint": take_fingerprint,
        "plan the encode stage": plan_encode,
        "open the order": open_order,
        "find sample N": find_sample,
        "commit a unit": commit_unit,
        "commit the artifact": finish,
    }


def write_one(unit: Unit, folder: Path) -> dict[str, Any]:
    """The least that a unit can be."""
    (folder / f"{unit.name}.txt").write_text(canonical_json(unit.recipe))
    return {"samples": 1}


@dataclass(frozen=True)
class Measured:
    """What one task took."""

    seconds: float
    megabytes: float


def measure(task: Callable[[], Any], repeat: int) -> Measured:
    """Return the least seconds of a few times, and by how much the process grew at most in the first.

    Seconds are those of the processor: a wall clock would measure the neighbours and the disk.
    """
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, seconds = memory("VmRSS"), math.inf
    peak = 0.0
    for number in range(repeat):
        started = time.process_time()
        result = task()
        seconds = min(seconds, time.process_time() - started)
        if number == 0:
            peak = memory("VmHWM") - before
        del result
    return Measured(seconds, max(peak, 0.0))


def memory(field: str) -> float:
    """Return a figure of this process in megabytes, e.g. VmRSS."""
    (line,) = (it for it in Path("/proc/self/status").read_text().splitlines() if it.startswith(field))
    return int(line.split()[1]) / 1000


def measure_world(shards: int, samples: int) -> dict[str, Measured]:
    """Measure all tasks at one size."""
    with tempfile.TemporaryDirectory() as folder:
        world = World.make(Path(folder), shards, samples)
        repeat = 5 if shards <= 1000 else 2
        return {name: measure(task, repeat) for name, task in tasks(world).items()}


def measure_assignment(pictures: int) -> dict[str, Measured]:
    """Cutting a source into shards: it must look at every picture."""
    from stages.data.assignment import assign
    from stages.data.pictures import Picture

    listed = [Picture(f"{n % 100}/{n:09d}.png", 3000, str(n), str(n % 100), "", str(n)) for n in range(pictures)]

    def cut() -> Any:
        return assign(listed, None, seed=0, validation_fraction=0.05, samples_per_shard=1000)

    return {"cut a source into shards": measure(cut, 1)}


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Fit value ~ size^exponent by least squares in logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


def table(title: str, sizes: Sequence[int], found: Sequence[dict[str, Measured]]) -> list[dict[str, Any]]:
    """Print a line a task; return the same as values."""
    print(f"\n{title}")
    print(f"{'':26}" + "".join(f"{size:>11,}" for size in sizes) + "   exponent        MB   exponent")
    rows = []
    for name in found[0]:
        seconds, megabytes = ([getattr(it[name], kind) for it in found] for kind in ("seconds", "megabytes"))
        row = {
            "task": name,
            "seconds": [round(value, 6) for value in seconds],
            "exponent": round(exponent(sizes[-FITTED:], seconds[-FITTED:]), 2),
            "megabytes": round(megabytes[-1], 1),
        }
        grown = round(exponent(sizes[-2:], megabytes[-2:]), 2) if min(megabytes[-2:]) > 1 else None
        rows.append({**row, "memory_exponent": grown})
        shown = f"{row['exponent']:11.2f}{megabytes[-1]:10.1f}{'-' if grown is None else f'{grown:.2f}':>11}"
        print(f"{name:26}" + "".join(f"{value:9.4f} s" for value in seconds) + shown, flush=True)
    return rows


def main() -> int:
    """Measure, print the tables and, last, a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", default="100,1000,10000,100000")
    parser.add_argument("--samples-per-shard", type=int, default=1000)
    options = parser.parse_args()
    shards = [int(it) for it in options.shards.split(",")]
    each = options.samples_per_shard
    grown = [measure_world(count, count * each) for count in shards]
    by_shards = table(f"shards, with {each:,} samples in each", shards, grown)
    fixed = shards[len(shards) // 2 - 1]
    samples = [fixed * each // 10 * 10**power for power in range(4)]
    by_samples = table(f"samples, in {fixed:,} shards", samples, [measure_world(fixed, count) for count in samples])
    pictures = [3_000, 30_000, 300_000]
    cut = table("pictures of a source", pictures, [measure_assignment(count) for count in pictures])
    print(json.dumps({"shards": shards, "by_shards": by_shards, "by_samples": by_samples, "by_pictures": cut}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
