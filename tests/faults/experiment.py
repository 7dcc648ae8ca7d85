"""A pipeline of seconds that faults are tried on: its config and pictures, a calm run of it, and what must hold after.

Call `tests.faults.driver.preload` first.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact
from pipeline.manifest import MANIFEST
from pipeline.storage import Folder
from pipeline.units import UnitStore
from tests.faults.driver import Driver, fork, start
from tests.kill_and_resume import STAGES, digests
from tests.pictures import draw_pictures
from tests.small import small_config

QUICK: dict[str, dict[str, Any]] = {
    "tokenizer": {
        "losses": {
            "perceptual": {"kind": "none"},
            "perceptual_weight": 0.0,
            "discriminator": {"start": 4, "warmup_steps": 2, "ramp_steps": 2, "base_channels": 8},
        },
        "record_every": 1,
    },
    "prior": {"record_every": 1},
    "evaluate": {"train_pictures": 32, "inception": "none"},
    "cluster": {"checkpoint_every": 3, "threads": 1},
}
"""The small config without what only takes time. Every step is recorded, so that a gap cannot hide."""

SECONDS = 900
"""After which a run is taken for hung."""


@dataclass
class Experiment:
    """Config, pictures and logs in a folder, and what a calm run of them makes."""

    folder: Path
    pictures: int = 60
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each stage in the calm run."""
    digests: dict[str, str] = field(default_factory=dict)
    """Content digest of each stage's artifact in the calm run."""

    def __post_init__(self) -> None:
        draw_pictures(self.folder / "pictures", self.pictures)
        self.config = small_config(self.folder, **QUICK)

    @property
    def calm(self) -> Path:
        """The workdir of the calm run."""
        return self.folder / "calm"

    def before(self, stage: str) -> Path:
        """A copy of the calm run's workdir from before a stage ran."""
        return self.folder / f"before-{stage}"

    def arguments(self, workdir: Path, *more: str) -> list[str]:
        """The command line, in this process and without a tracker."""
        return ["--config", str(self.config), "--workdir", str(workdir), "--runtime", "local", "--no-tracking", *more]

    def start(
        self, workdir: Path, *more: str, before: Callable[[], object] = lambda: None, log: str = "driver.log"
    ) -> Driver:
        """Start a run; `before` is called in its process."""
        return start(self.arguments(workdir, *more), self.folder / log, before)

    def run(self, workdir: Path, *more: str, before: Callable[[], object] = lambda: None) -> Driver:
        """Run to the end, whatever that is."""
        driver = self.start(workdir, *more, before=before)
        if driver.wait(SECONDS) is None:
            driver.kill()
            raise AssertionError(f"hung for {SECONDS} s:\n{driver.text}")
        return driver

    def run_calmly(self) -> None:
        """Run stage by stage, keeping a copy from before each, its seconds, and all digests."""
        self.calm.mkdir()
        for stage in STAGES:
            restore(self.calm, self.before(stage))
            started = time.monotonic()
            driver = self.run(self.calm, "--stages", stage)
            assert driver.code == 0, driver.text
            self.seconds[stage] = time.monotonic() - started
        self.digests = digests(self.calm)

    def wrong(self, workdir: Path) -> list[str]:
        """Return a line for everything that is accepted as finished in a workdir and should not be."""
        log = self.folder / "look.log"
        driver = fork(partial(look, workdir, self.digests), log)
        code = driver.wait(SECONDS)
        return [] if code == 0 else driver.text.splitlines() or [f"looking ended with {code}"]


def restore(source: Path, target: Path) -> None:
    """Make `target` a copy of a workdir."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)


def look(workdir: Path, calm: dict[str, str]) -> int:
    """Print all complaints about a workdir; the exit code says whether there are any."""
    complaints = list(complaints_about(workdir, calm))
    print(*complaints, sep="\n")
    return int(bool(complaints))


def complaints_about(workdir: Path, calm: dict[str, str]) -> Iterator[str]:
    """Yield what is wrong with what lies finished: bytes, digests, units, sample ids, histories, checkpoints."""
    for path in sorted(workdir.glob(f"*/*/{MANIFEST}")):
        stage = path.parent.parent.name
        if stage not in STAGES or path.parent.is_symlink():
            continue
        store = UnitStore(Folder.at(workdir / "units" / stage), stage, 0)
        artifact = Artifact.load(Folder.at(path.parent), store)
        yield from artifact.damaged()
        if artifact.digest != calm[stage]:
            yield f"{path}: digest {artifact.digest[:12]}, a calm run has {calm[stage][:12]}"
        if stage == "sample":
            yield from repeated_samples(artifact)
        if stage in ("tokenizer", "prior"):
            rows = [json.loads(line) for line in artifact.local("history.jsonl").read_text().splitlines()]
            yield from uneven_steps(f"{path.parent}/history.jsonl", rows, int(artifact.recipe["config"]["steps"]))
    for folder in sorted(workdir.glob("checkpoints/*/*")):
        yield from bad_checkpoint(folder)


def repeated_samples(artifact: Artifact) -> Iterator[str]:
    """Yield ids that were drawn twice, or not at all."""
    import pyarrow.parquet

    tables = [artifact.local(entry.path) for _, entry in artifact.unit_files(".parquet")]
    ids = [value for table in tables for value in pyarrow.parquet.read_table(table).column("id").to_pylist()]
    if sorted(ids) != list(range(len(ids))) or len(ids) != artifact.metrics["samples"]:
        yield f"{artifact.folder}: sample ids {sorted(ids)} of {artifact.metrics['samples']} samples"


def uneven_steps(place: str, rows: list[dict[str, float]], last: int) -> Iterator[str]:
    """Yield a line where the recorded steps of training are not 1, 2, 3 ... `last`."""
    steps = [int(row["step"]) for row in rows if any(key.startswith("train/") for key in row)]
    if steps != list(range(1, last + 1)):
        yield f"{place}: steps {steps} instead of 1 to {last}"


def bad_checkpoint(folder: Path) -> Iterator[str]:
    """Yield what is wrong with the newest checkpoint of a training."""
    from stages.training.checkpoints import Checkpoints

    newest = Checkpoints(Folder.at(folder), "look").latest()
    if newest is not None:
        yield from newest.warnings
        yield from uneven_steps(f"{folder}/{newest.name}", newest.history, newest.step)
