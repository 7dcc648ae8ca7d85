"""Chaos: seeded random faults against a small pipeline for some minutes, and after each a look at all that is finished.

    python -m tests.chaos [--minutes 15] [--seed 0] [--only FAULT,...]

A round starts (or resumes) the pipeline, does something terrible at a moment drawn by lot, and checks: every manifest
verifies, no unit is lost, no sample is drawn twice, histories of training have no gap or overlap, and what is finished
has the digests of a calm run. A finished pipeline is followed by an empty workdir, unless files are struck. Prints
a line for each round and a table at the end; the exit code is 1 after any violation. The seed decides faults, files
and moments (as shares of a calm run's seconds). As root it mounts a small disk to fill; otherwise it leaves that out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.driver import preload
from tests.faults.experiment import Experiment
from tests.faults.full_disk import small_disk
from tests.faults.strikes import FAULTS
from tests.faults.world import Tally, World
from tests.kill_and_resume import STAGES

STRIKE_FILES = ("file lost or cut", "bit flipped")
NEEDS_A_WHOLE_RUN = ("worker SIGKILL (Ray)",)
"""What starts so slowly that a half finished run would end before it is struck."""


def finished_stages(world: World) -> int:
    """How many stages are finished."""
    return sum(any(world.workdir.glob(f"{stage}/*/manifest.json")) for stage in STAGES)


def play_round(world: World, number: int, fault: str) -> None:
    """One fault, then a look. After a finished pipeline all but what strikes files begins with an empty workdir."""
    if fault in NEEDS_A_WHOLE_RUN or (finished_stages(world) == len(STAGES) and fault not in STRIKE_FILES):
        shutil.rmtree(world.workdir, ignore_errors=True)
    tally = world.tallies.setdefault(fault, Tally())
    tally.rounds += 1
    struck, started, before = tally.struck, time.monotonic(), len(world.complaints)
    FAULTS[fault][1](world)
    world.complaints += world.experiment.wrong(world.workdir)
    did = "struck" if tally.struck > struck else "nothing to strike"
    verdict = "WRONG" if len(world.complaints) > before else "all well"
    seconds, finished = time.monotonic() - started, finished_stages(world)
    shown = f"{number:4} {fault:22}{did:19}{seconds:6.1f} s  {finished} finished  {verdict}"
    print(shown, *world.complaints[before:], sep="\n     ", flush=True)
    world.finishes += finished == len(STAGES)


def print_table(world: World) -> None:
    """What each fault cost."""
    print(
        f"\n{'fault':24}{'rounds':>7}{'struck':>8}{'recovered':>11}{'median s':>10}{'worst s':>9}{'work lost, s':>14}"
    )
    for fault, tally in world.tallies.items():
        seconds = sorted(tally.seconds) or [float("nan")]
        middle, lost = seconds[len(seconds) // 2], tally.lost / max(1, tally.struck)
        print(
            f"{fault:24}{tally.rounds:7}{tally.struck:8}{tally.recoveries:11}{middle:10.1f}{seconds[-1]:9.1f}{lost:14.1f}"
        )
    rounds = sum(tally.rounds for tally in world.tallies.values())
    print(f"{rounds} rounds, {world.finishes} times finished, {len(world.complaints)} violations")


def main() -> int:
    """Rounds until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="faults, separated by commas: " + "; ".join(FAULTS))
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    preload()
    faults = options.only.split(",") if options.only else list(FAULTS)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="smalti-chaos-")))
        disk = stack.enter_context(small_disk(folder / "disk")) if os.geteuid() == 0 else None
        if disk is None:
            print("not root: without a full disk")
            faults = [fault for fault in faults if fault not in ("disk full", "permission lost")]
        experiment = Experiment(folder)
        experiment.run_calmly()
        print(f"a calm run takes {sum(experiment.seconds.values()):.0f} s", flush=True)
        world = World(experiment, (folder / "disk" if disk else folder) / "runs", random.Random(options.seed), disk)
        until, number = time.monotonic() + 60 * options.minutes, 0
        while time.monotonic() < until:
            number += 1
            (fault,) = world.luck.choices(faults, [FAULTS[name][0] for name in faults])
            play_round(world, number, fault)
        print_table(world)
    return int(bool(world.complaints))


if __name__ == "__main__":
    sys.exit(main())
