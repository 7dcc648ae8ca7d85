"""Watches a long run from outside: memory, open files and threads of the driver and of its workers must stay flat.

    python -m tests.long_run [--steps 2000] [--units 200] [--runtime ray|local]

Runs the small pipeline with so many steps of each training and so many units of samples, and looks at the driver and
at the processes that train and sample every half second (with `--runtime local` the driver does all). Of each stage the
first third is warm-up; to the rest a line is fitted. Prints a table of what that line adds up to over the stage. Exit
code 1 where something grows: memory by more than 3% of the process and 24 MB, open files or threads by more than 2.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.kill_and_resume import descendants
from tests.pictures import draw_pictures
from tests.small import COMMAND, ROOT, small_config

WATCHED = ("tokenizer", "prior", "sample")
WARM_UP = 1 / 3
EVERY = 0.5
"""Seconds between looks."""
FEWEST = 6
"""Looks after warm-up below which nothing is concluded."""


@dataclass(frozen=True)
class Look:
    """What a process held at some time."""

    at: float
    megabytes: float
    files: int
    threads: int


@dataclass(frozen=True)
class Growth:
    """What the fitted lines add up to from the end of the warm-up to the end of the stage."""

    stage: str
    role: str
    looks: int
    start: float
    """Megabytes at the end of the warm-up."""
    megabytes: float
    files: float
    threads: float

    @property
    def leaks(self) -> bool:
        """Whether something grows."""
        return self.megabytes > max(24.0, 0.03 * self.start) or self.files > 2 or self.threads > 2


def look(pid: int) -> Look | None:
    """Look at a process; None where it is gone."""
    with contextlib.suppress(OSError, KeyError):
        lines = (line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        status = dict(it for it in lines if len(it) == 2)
        files = len(os.listdir(f"/proc/{pid}/fd"))
        return Look(time.monotonic(), int(status["VmRSS"].split()[0]) / 1000, files, int(status["Threads"]))
    return None


def roles(driver: int) -> dict[int, str]:
    """The driver and the workers that run units and ranks, by pid."""
    found = {driver: "driver"}
    for pid in descendants(driver):
        with contextlib.suppress(OSError):
            if b"ray::Host" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found[pid] = "worker"
    return found


class Watch:
    """Looks at a pipeline while it runs; which stage that is, its lines say."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.stage = process, ""
        self.lines: list[str] = []
        self.looks: dict[tuple[str, str, int], list[Look]] = defaultdict(list)

    def read(self) -> None:
        """Follow the driver's lines to its end."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            name, _, rest = line.partition(": ")
            if rest.startswith("runs, "):
                self.stage = name

    def run(self) -> int:
        """Look until the driver ends; return its exit code."""
        reader = threading.Thread(target=self.read)
        reader.start()
        while self.process.poll() is None:
            if self.stage in WATCHED:
                for pid, role in roles(self.process.pid).items():
                    if (seen := look(pid)) is not None:
                        self.looks[self.stage, role, pid].append(seen)
            time.sleep(EVERY)
        reader.join()
        return self.process.returncode

    def growth(self) -> list[Growth]:
        """Fit each process's looks, stage by stage."""
        return [fit(stage, role, looks) for (stage, role, _), looks in self.looks.items() if enough(looks)]


def warmed_up(looks: Sequence[Look]) -> list[Look]:
    """The looks after the warm-up."""
    start, end = looks[0].at, looks[-1].at
    return [it for it in looks if it.at >= start + WARM_UP * (end - start)]


def enough(looks: Sequence[Look]) -> bool:
    """Whether anything can be concluded from them."""
    return len(warmed_up(looks)) >= FEWEST


def fit(stage: str, role: str, looks: Sequence[Look]) -> Growth:
    """Fit lines to the looks after the warm-up."""
    kept = warmed_up(looks)
    times = np.array([it.at - kept[0].at for it in kept])

    def added(values: Sequence[float]) -> float:
        return float(np.polyfit(times, values, 1)[0] * times[-1])

    return Growth(
        stage,
        role,
        len(kept),
        start=kept[0].megabytes,
        megabytes=added([it.megabytes for it in kept]),
        files=added([it.files for it in kept]),
        threads=added([it.threads for it in kept]),
    )


def main() -> int:
    """Run, watch, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--units", type=int, default=200)
    parser.add_argument("--runtime", choices=("ray", "local"), default="ray")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_pictures(folder / "pictures", 120)
        long = {"steps": options.steps, "validate_every": max(1, options.steps // 20)}
        config = small_config(
            folder,
            tokenizer=long,
            prior=long,
            sample={"num_samples": 8 * options.units},
            cluster={"checkpoint_every": max(1, options.steps // 40), "unit_workers": 1},
        )
        arguments = [
            "--config",
            str(config),
            "--workdir",
            str(folder / "runs"),
            "--stages",
            "shard..sample",
            "--runtime",
            options.runtime,
        ]
        process = subprocess.Popen(
            [*COMMAND, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        watch = Watch(process)
        code = watch.run()
        kept = sorted(path.parent.name for path in folder.glob("runs/checkpoints/*/*/step-*"))
        logs = sum(path.stat().st_size for path in folder.glob("runs/logs/*"))
    if code:
        print(*watch.lines, sep="")
        return code
    found = watch.growth()
    print(f"{'stage':10} {'process':8} {'looks':>6} {'MB then':>9} {'MB added':>9} {'files':>7} {'threads':>8}")
    for it in found:
        verdict = "LEAKS" if it.leaks else "flat"
        print(
            f"{it.stage:10} {it.role:8} {it.looks:6} {it.start:9.0f} {it.megabytes:9.1f} {it.files:7.1f} "
            f"{it.threads:8.1f}  {verdict}"
        )
    print(f"{len(kept)} checkpoints left of {2 * 40} saved; {logs / 1e3:.0f} kB of logs")
    expected = ("driver", "worker") if options.runtime == "ray" else ("driver",)
    unseen = {(stage, role) for stage in WATCHED for role in expected} - {(it.stage, it.role) for it in found}
    if unseen:
        print("too short to conclude anything of", *(f"{stage}'s {role}" for stage, role in sorted(unseen)))
    print(json.dumps({"leaks": sum(it.leaks for it in found), "unseen": len(unseen), "checkpoints": len(kept)}))
    return int(any(it.leaks for it in found) or bool(unseen) or len(kept) > 4)


if __name__ == "__main__":
    sys.exit(main())
