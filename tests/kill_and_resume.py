"""Kills a small pipeline at random moments, driver and workers alike, resumes it each time, and compares the result.

    python -m tests.kill_and_resume --kills 10 --seed 1 [--runtime local]

prints what was killed when, and the content digest of every artifact beside that of an uninterrupted run.

    python -m tests.kill_and_resume --in-each-stage 20 --seed 1

kills the driver of a run in one process so many times in each stage, and prints a line for each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.pictures import draw_pictures
from tests.small import COMMAND, ROOT, small_config

STAGES = ("shard", "tokenizer", "encode", "prior", "sample", "evaluate", "publish")


def digests(workdir: Path, stages: Sequence[str] = STAGES) -> dict[str, str]:
    """Return the content digest of each stage's latest artifact."""
    return {stage: json.loads((workdir / stage / "latest" / "manifest.json").read_text())["digest"] for stage in stages}


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> int:
    """Print the digests of two runs, a line a stage; return how many differ."""
    for stage in STAGES:
        verdict = "equal" if expected[stage] == found[stage] else "DIFFERENT"
        print(f"{stage:10} {expected[stage][:16]} {found[stage][:16]} {verdict}")
    return sum(expected[stage] != found[stage] for stage in STAGES)


def descendants(pid: int) -> list[int]:
    """Return the pids of all processes below a process."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(ValueError, OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """Start the pipeline."""
    return subprocess.Popen(
        [*COMMAND, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kill a process and everything below it, without warning."""
    for pid in [process.pid, *descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def run_with_kills(arguments: list[str], kills: int, longest: float, seed: int) -> tuple[list[str], int]:
    """Kill the pipeline after up to `longest` seconds, `kills` times, then let it finish.

    Returns a line for each kill and the last exit code.
    """
    luck, lines = random.Random(seed), []
    for _ in range(kills):
        delay = luck.uniform(0, longest)
        process = start(arguments)
        try:
            process.communicate(timeout=delay)
            lines.append(f"finished before the kill at {delay:.1f} s")
        except subprocess.TimeoutExpired:
            kill_all(process)
            lines.append(f"killed after {delay:.1f} s")
    process = start(arguments)
    text, _ = process.communicate()
    if process.returncode:
        lines.append(text)
    return lines, process.returncode


def main() -> int:
    """Run calmly, run with kills, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runtime", choices=("ray", "local"), default="ray")
    parser.add_argument("--in-each-stage", type=int, metavar="KILLS", help="kill the driver so often in each stage")
    options = parser.parse_args()
    if options.in_each_stage:
        from tests.faults.stage_kills import table

        return int(table(options.in_each_stage, options.seed) > 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_pictures(folder / "pictures", 120)
        shared = ["--config", str(small_config(folder)), "--runtime", options.runtime, "--no-tracking"]
        started = time.monotonic()
        calm = start([*shared, "--workdir", str(folder / "calm")])
        text, _ = calm.communicate()
        if calm.returncode:
            print(text)
            return 1
        seconds = time.monotonic() - started
        print(f"uninterrupted: {seconds:.0f} s", flush=True)
        lines, code = run_with_kills(
            [*shared, "--workdir", str(folder / "killed")], options.kills, 0.8 * seconds, options.seed
        )
        print(*lines, sep="\n")
        if code:
            return 1
        expected, found = digests(folder / "calm"), digests(folder / "killed")
    return int(differences(expected, found) > 0)


if __name__ == "__main__":
    sys.exit(main())
