"""Kills the driver at seeded moments of each stage by itself, and compares what the resumed runs make."""

from __future__ import annotations

import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.driver import preload
from tests.faults.experiment import Experiment, restore
from tests.kill_and_resume import STAGES

MEMORY = Path("/dev/shm")


@dataclass
class Row:
    """What the kills of one stage came to."""

    stage: str
    calm_seconds: float
    kills: int = 0
    finished: int = 0
    seconds: float = 0.0
    wrong: tuple[str, ...] = ()

    @property
    def lost(self) -> float:
        """Seconds that a kill cost, on average: starting again, and work since the last commit."""
        return max(0.0, self.seconds - self.finished * self.calm_seconds) / max(1, self.kills)


def kill_in_stage(experiment: Experiment, stage: str, kills: int, luck: random.Random) -> Row:
    """Kill runs of a stage until there were so many kills, each resumed by the next; whenever it ends, begin anew."""
    row, workdir = Row(stage, experiment.seconds[stage]), experiment.folder / "killed"
    restore(experiment.before(stage), workdir)
    while True:
        started = time.monotonic()
        driver = experiment.start(workdir, "--stages", stage)
        code = driver.wait(luck.uniform(0, row.calm_seconds) if row.kills < kills else 3600)
        if code is None:
            driver.kill()
            row.kills += 1
        row.seconds += time.monotonic() - started
        row.wrong += tuple(experiment.wrong(workdir))
        if code is None:
            continue
        if code:
            row.wrong += (f"resumed run ended with {code}: {driver.text[-2000:]}",)
        row.finished += 1
        if row.kills == kills:
            return row
        restore(experiment.before(stage), workdir)


def table(kills: int, seed: int) -> int:
    """Print a line for each stage; return how many results were wrong."""
    preload()
    wrong = 0
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None, prefix="smalti-kills-") as name:
        experiment = Experiment(Path(name))
        experiment.run_calmly()
        print(f"{'stage':10}{'calm, s':>9}{'kills':>7}{'finished':>10}{'wrong':>7}{'lost per kill, s':>18}", flush=True)
        for number, stage in enumerate(STAGES):
            row = kill_in_stage(experiment, stage, kills, random.Random(1000 * seed + number))
            cells = f"{row.calm_seconds:9.1f}{row.kills:7}{row.finished:10}{len(row.wrong):7}{row.lost:18.1f}"
            print(f"{stage:10}{cells}", *row.wrong, sep="\n    ", flush=True)
            wrong += len(row.wrong)
    return wrong
