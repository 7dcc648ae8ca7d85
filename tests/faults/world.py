"""The pipeline that chaos strikes: when it was struck, when it committed something again, what went wrong."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.driver import Driver
from tests.faults.experiment import Experiment
from tests.faults.full_disk import SmallDisk


@dataclass
class Tally:
    """What the rounds of one fault came to."""

    rounds: int = 0
    struck: int = 0
    """Rounds in which the run was still going, or there was a file to damage."""
    recoveries: int = 0
    """Faults after which the pipeline was finished."""
    seconds: list[float] = field(default_factory=list)
    """From the fault to the first thing that is committed after it."""
    lost: float = 0.0
    """Seconds of work that had been done since the last commit when the fault struck."""


@dataclass
class World:
    """The pipeline under attack."""

    experiment: Experiment
    workdir: Path
    luck: random.Random
    disk: SmallDisk | None
    tallies: dict[str, Tally] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    finishes: int = 0
    struck_at: tuple[str, float] | None = None
    """The last fault and when, until a commit came after it."""

    def moment(self) -> float:
        """Seconds after which to strike."""
        return self.luck.uniform(0, 0.6 * sum(self.experiment.seconds.values()))

    def strike(self, fault: str) -> None:
        """Note that a fault struck, and how long ago the last commit was."""
        self.note_recovery()
        tally = self.tallies[fault]
        tally.struck += 1
        tally.lost += min(time.time() - last_commit(self.workdir), max(self.experiment.seconds.values()))
        self.struck_at = (fault, time.time())

    def settle(self, driver: Driver, *expected: int | None) -> None:
        """Note how a run ended, and when the first commit after the last fault came."""
        if driver.code not in expected:
            self.complaints.append(f"a run ended with {driver.code}, not {expected}: {driver.text[-2500:]}")
        self.note_recovery()
        if driver.code == 0:
            for tally in self.tallies.values():
                tally.recoveries = tally.struck

    def note_recovery(self) -> None:
        """Note when the first commit after the last fault came, if one has come."""
        if self.struck_at is not None and last_commit(self.workdir) > self.struck_at[1]:
            fault, when = self.struck_at
            self.tallies[fault].seconds.append(first_commit_after(self.workdir, when) - when)
            self.struck_at = None


def commits(workdir: Path) -> Iterator[float]:
    """When units, checkpoints, manifests were committed."""
    for pattern in ("units/*/*/unit.json", "checkpoints/*/*/LATEST", "*/*/manifest.json"):
        for path in workdir.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                yield path.stat().st_mtime


def last_commit(workdir: Path) -> float:
    """When something was committed last; now, where nothing was."""
    return max(commits(workdir), default=time.time())


def first_commit_after(workdir: Path, when: float) -> float:
    """The first commit after a moment."""
    return min((stamp for stamp in commits(workdir) if stamp > when), default=when)
