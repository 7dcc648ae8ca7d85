"""Kills a run at every system call of its commits, and cuts the power there: nothing partial may ever be accepted.

    python -m tests.faults.commit_points [--points 200] [--seed 0]

runs a small graph (units, artifacts, checkpoints, manifests) three times over: in an empty workdir, with every stage
forced, and with a source that grew. At each call that changes or syncs a file the process is killed (SIGKILL). Then
three disks are reopened: what the kill left, what a disk holds that keeps nothing but what was synced, and one that
keeps by lot some of the rest. Whatever is taken as finished must be whole, and the same command must end with the
bytes of a calm run. Prints a table; the exit code is 1 where anything was wrong. Linux on x86-64.
"""

from __future__ import annotations

import argparse
import collections
import functools
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pipeline import provenance
from pipeline.artifacts import Artifact
from pipeline.manifest import MANIFEST, UnitRecord, digest_of
from pipeline.storage import Folder, content_hash
from pipeline.units import RECORD, UnitStore
from tests.faults import toy_training
from tests.faults.driver import fork
from tests.faults.power_cut import Disk
from tests.faults.trace import SUPPORTED, Call, traced

SCENARIOS = ("empty workdir", "every stage forced", "source grew")
DISKS = ("killed", "power cut", "power cut by lot")
STAGES = ("cut", "total", "learn")


@dataclass
class Tally:
    """What was tried in a scenario and what came of it."""

    calls: collections.Counter[str] = field(default_factory=collections.Counter)
    reopened: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass
class Place:
    """The folders of an experiment: a source, the disk with the workdir, and room for copies."""

    root: Path
    numbers: Path
    before: Path
    """The workdir as it was before the run, on a disk of its own."""
    force: tuple[str, ...]
    calm: dict[str, str]

    @property
    def disk(self) -> Path:
        """Where the run that is killed works."""
        return self.root / "disk"

    def work(self, disk: Path) -> Callable[[], int]:
        """The command."""
        return partial(toy_training.run, self.numbers, disk / "runs", self.force)


def accepted_wrongly(workdir: Path) -> Iterator[str]:
    """Yield a line for all that the pipeline would take as finished although it is not whole."""
    for path in sorted(workdir.glob(f"*/*/{MANIFEST}")):
        stage = path.parent.parent.name
        if stage in STAGES and not path.parent.is_symlink():
            store = UnitStore(Folder.at(workdir / "units" / stage), stage, 1)
            artifact = Artifact.load(Folder.at(path.parent), store)
            yield from artifact.damaged()
            if digest_of(artifact.files) != artifact.digest:
                yield f"{path} has another digest than its files"
    for path in sorted(workdir.glob(f"units/*/[!.]*/{RECORD}")):  # scratch folders have a dot: nobody looks into them
        record = UnitRecord.model_validate_json(path.read_text())
        for entry in record.files:
            file = path.parent / entry.path
            if file.exists() and file.stat().st_size == entry.bytes and content_hash(file) != entry.sha256:
                yield f"unit {file} has the right size and wrong bytes"
    for folder in sorted(workdir.glob("checkpoints/*/*")):
        from stages.training.checkpoints import Checkpoints

        newest = Checkpoints(Folder.at(folder), "check").latest()
        if newest is not None:
            yield from newest.warnings
            total = sum(row["loss"] for row in newest.history[-1:])
            if [row["step"] for row in newest.history] != list(range(1, newest.step + 1)):
                yield f"checkpoint {newest.name} has a history with a gap or an overlap"
            if abs(float(newest.state["w"].sum()) - total) > 0:
                yield f"checkpoint {newest.name} holds another state than its history says"


def prepare(root: Path, scenario: str) -> Place:
    """Make the source, the workdir as it is before the run, and the digests of a calm one."""
    numbers, before = root / "numbers", root / "before"
    for folder in (numbers, before):
        folder.mkdir(parents=True)
    for number in range(5):
        (numbers / f"{number}.txt").write_text(f"{number}")
    os.environ["TOY_FOLDER"] = str(numbers)
    force = STAGES if scenario == "every stage forced" else ()
    if scenario != "empty workdir":
        assert fork(partial(toy_training.run, numbers, before / "runs"), root / "before.log").wait() == 0
    if scenario == "source grew":
        (numbers / "5.txt").write_text("50")
    shutil.copytree(before, root / "calm", symlinks=True)
    place = Place(root, numbers, before, force, {})
    assert fork(place.work(root / "calm"), root / "calm.log").wait() == 0, (root / "calm.log").read_text()
    place.calm = toy_training.digests(numbers, root / "calm/runs")
    assert set(place.calm) == set(STAGES)
    return place


def fresh_disk(place: Place) -> Disk:
    """Put the disk back to what it was before the run; all of it is safe."""
    shutil.rmtree(place.disk, ignore_errors=True)
    shutil.copytree(place.before, place.disk, symlinks=True)
    return Disk.holding(place.disk)


def trace(place: Place, disk: Disk, stop_at: int | None) -> tuple[list[Call], int | None]:
    """Run until the call of this number and kill the process there. Returns the calls so far and the exit code."""
    calls, syncing = list[Call](), None
    for call, driver in traced(place.work(place.disk), place.root / "traced.log", place.disk):
        if syncing is not None:
            disk.sync(syncing)
        syncing = call.path if call.name in ("fsync", "fdatasync") else None
        calls.append(call)
        if stop_at is not None and len(calls) > stop_at:
            driver.kill()
            break
        code = driver
    return calls, code.code if stop_at is None else None


def reopen(place: Place, disk: Path) -> list[str]:
    """Look at what a disk holds, run the command again, and look once more: in a process of its own."""

    def work() -> int:
        complaints = [f"accepted: {line}" for line in accepted_wrongly(disk / "runs")]
        place.work(disk)()
        complaints += [f"finished: {line}" for line in accepted_wrongly(disk / "runs")]
        found = toy_training.digests(place.numbers, disk / "runs")
        complaints += [] if found == place.calm else [f"digests differ: {found} instead of {place.calm}"]
        print(*complaints, sep="\n")
        return int(bool(complaints))

    driver = fork(work, place.root / "reopened.log")
    return [] if driver.wait() == 0 else [driver.text.strip()[-1500:]]


def try_point(place: Place, number: int, tally: Tally, seed: int) -> None:
    """Kill at one call, and reopen the three disks."""
    disk = fresh_disk(place)
    calls, _ = trace(place, disk, number)
    tally.calls[calls[-1].name] += 1
    cut, lot = place.root / "cut", place.root / "lot"
    for target, luck in ((cut, None), (lot, random.Random(seed * 100003 + number))):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        disk.after_power_cut(target, luck)
    for name, target in zip(DISKS, (place.disk, cut, lot), strict=True):
        tally.reopened += 1
        where = calls[-1].path.relative_to(place.disk)
        tally.wrong += [f"{name} before call {number}, {calls[-1].name} {where}: {it}" for it in reopen(place, target)]


def plain_provenance() -> None:
    """Asking git and the packages for their versions is most of the seconds of a run this small."""
    provenance.code_revision = lambda: "unknown"
    provenance.metadata.version = functools.cache(provenance.metadata.version)
    provenance.provenance(0, {}, 0, None)


def main() -> int:
    """Walk through the scenarios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=0, help="at most so many, drawn by lot; default: every one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not SUPPORTED or not os.access("/dev/shm", os.W_OK):
        print("needs Linux on x86-64 and /dev/shm")
        return 0
    plain_provenance()
    import torch

    torch.set_num_threads(1)
    print(f"{'scenario':22}{'calls':>7}{'kill points':>13}{'reopened':>10}{'wrong':>7}{'seconds':>9}", flush=True)
    points = reopened = wrong = 0
    for scenario in SCENARIOS:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="smalti-commit-") as name:
            place, tally = prepare(Path(name), scenario), Tally()
            calls, code = trace(place, fresh_disk(place), None)
            assert code == 0, (place.root / "traced.log").read_text()
            chosen = list(range(len(calls)))
            if options.points:
                wanted = min(len(chosen), -(-options.points // len(SCENARIOS)))
                chosen = sorted(random.Random(options.seed).sample(chosen, wanted))
            for number in chosen:
                try_point(place, number, tally, options.seed)
        seconds = time.monotonic() - started
        print(
            f"{scenario:22}{len(calls):7}{len(chosen):13}{tally.reopened:10}{len(tally.wrong):7}{seconds:9.0f}",
            flush=True,
        )
        print(*(f"    {line}" for line in tally.wrong[:20]), sep="\n", end="\n" if tally.wrong else "", flush=True)
        points, reopened, wrong = points + len(chosen), reopened + tally.reopened, wrong + len(tally.wrong)
    print(f"{points} kill points, {reopened} disks reopened, {wrong} accepted or ended wrongly")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
