"""Kills one rank of a tokenizer's training, and compares what the restarted gang makes with an uninterrupted gang.

    python -m tests.kill_a_rank --ranks 2 --at 30 --steps 50

prints how long it took until training had passed the step of the kill again, and both results' digests and losses.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.kill_and_resume import descendants
from tests.pictures import draw_pictures
from tests.small import COMMAND, ROOT, SMALL, small_config

SHOWN = ("reconstruction", "perceptual", "adversarial", "adaptive_weight", "discriminator", "perplexity")


def step_reached(workdir: Path) -> int:
    """Return the step of the newest checkpoint."""
    steps = [int(path.name.split("-")[1]) for path in workdir.glob("checkpoints/tokenizer/*/step-*")]
    return max(steps, default=0)


def rank_processes(driver: int) -> list[int]:
    """Return the pids of the processes that train."""
    found = []
    for pid in descendants(driver):
        title = Path(f"/proc/{pid}/cmdline").read_bytes() if Path(f"/proc/{pid}").exists() else b""
        if b"ray::Host" in title:
            found.append(pid)
    return sorted(found)


def train(arguments: list[str], workdir: Path, kill_at: int | None) -> float | None:
    """Train a tokenizer; return the seconds between the kill and the first checkpoint after its step."""
    command = [*COMMAND, *arguments, "--workdir", str(workdir), "--stages", "shard,tokenizer"]
    with (workdir.parent / f"{workdir.name}.log").open("w") as log:
        driver = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        killed, recovered = None, None
        while driver.poll() is None:
            reached = step_reached(workdir)
            if kill_at is not None and killed is None and reached >= kill_at:
                os.kill(rank_processes(driver.pid)[-1], signal.SIGKILL)
                killed, at = time.monotonic(), reached
            if killed is not None and recovered is None and step_reached(workdir) > at:
                recovered = time.monotonic() - killed
            time.sleep(0.05)
    if driver.returncode or (kill_at is not None and recovered is None):
        raise SystemExit((workdir.parent / f"{workdir.name}.log").read_text() + "\nthe run failed, or ended too early")
    return recovered


def main() -> int:
    """Train twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--at", type=int, default=30)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    discriminator = {"start": 0, "warmup_steps": 0, "ramp_steps": 0, "base_channels": 8}
    tokenizer = {
        **SMALL["tokenizer"],  # type: ignore[dict-item]
        "steps": options.steps,
        "batch_size": 24,
        "record_every": 1,
        "validate_every": options.steps,
        "losses": {"discriminator": discriminator},
    }
    cluster = {"num_workers": options.ranks, "threads": 1, "checkpoint_every": 5}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_pictures(folder / "pictures", 120)
        arguments = ["--config", str(small_config(folder, tokenizer=tokenizer, cluster=cluster)), "--no-tracking"]
        train(arguments, folder / "calm", None)
        seconds = train(arguments, folder / "killed", options.at)
        results = [folder / run / "tokenizer/latest" for run in ("calm", "killed")]
        last = [json.loads((it / "history.jsonl").read_text().splitlines()[-2]) for it in results]
        digests = [json.loads((it / "manifest.json").read_text())["digest"] for it in results]
    print(f"a rank of {options.ranks} killed after step {options.at}: the next checkpoint came {seconds:.1f} s later")
    print(f"{'last step':>16}  {'uninterrupted':>16}  {'killed':>16}")
    for key in (f"train/{name}" for name in SHOWN):
        print(f"{key.removeprefix('train/'):>16}  {last[0][key]:16.8f}  {last[1][key]:16.8f}")
    print(f"{'digest':>16}  {digests[0][:16]:>16}  {digests[1][:16]:>16}")
    return int(digests[0] != digests[1])


if __name__ == "__main__":
    sys.exit(main())
