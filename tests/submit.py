"""The pipeline as a job of a Ray cluster, submitted again and again with the same id, as schedules and people do.

    python -m tests.submit
    python -m tests.submit --config configs/mnist_pixelcnn.yaml

starts a head with a token by configs/cluster/start_ray.sh, submits the smoke run of a config, submits it again while
it runs and after it has ended, shows a wrong token, another command for the same slot, and a workdir that is in use;
prints what each call said and ended with, how often the job ran and how often its stages were attempted. The last line
is JSON.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.head import Head, running_head
from tests.small import ROOT


@dataclass
class Calls:
    """What was submitted, and what came of it."""

    head: Head
    workdir: Path
    config: str
    rows: list[tuple[str, int, float]] = field(default_factory=list)

    def command(self, *options: str, slot: str = "1", more: Iterable[str] = ()) -> list[str]:
        """Return the command of one call."""
        run = ["--config", self.config, "--smoke", "--workdir", str(self.workdir), *more]
        command = [sys.executable, "-m", "pipeline.submit", "--slot", slot, "--address", self.head.dashboard]
        return [*command, *options, "--", *run]

    def call(
        self, what: str, *options: str, slot: str = "1", more: Iterable[str] = (), token: Path | None = None
    ) -> str:
        """Submit, wait for the answer and note it; return what was told."""
        began = time.monotonic()
        done = subprocess.run(
            self.command(*options, slot=slot, more=more),
            cwd=ROOT,
            env=self.head.environment(token),
            capture_output=True,
            text=True,
            check=False,
        )
        self.note(what, done.returncode, time.monotonic() - began, done.stdout + done.stderr)
        return done.stdout + done.stderr

    def note(self, what: str, code: int, seconds: float, told: str) -> None:
        """Print what a call said, and keep it for the table."""
        self.rows.append((what, code, seconds))
        print(f"== {what}: exit {code} after {seconds:.1f} s", flush=True)
        lines = told.strip().splitlines()
        print("\n".join(f"   {line}" for line in ([*lines[:3], "..."] if len(lines) > 6 else []) + lines[-3:]))


def submitted_jobs(head: Head) -> dict[str, str]:
    """Return the status of every job that the cluster was given, by id."""
    bearer = {"Authorization": f"Bearer {head.token.read_text()}"}
    with urllib.request.urlopen(urllib.request.Request(f"{head.dashboard}/api/jobs/", headers=bearer)) as answer:
        return {job["submission_id"]: job["status"] for job in json.load(answer) if job["submission_id"]}


def stage_attempts(workdir: Path) -> dict[str, int]:
    """Return how often each stage was attempted."""
    return {
        path.parent.parent.name: json.loads(path.read_text())["number"] for path in workdir.glob("*/*/attempt.json")
    }


def until(condition: Callable[[], bool], process: subprocess.Popen[str], what: str) -> None:
    """Wait for something to happen while a process runs."""
    while not condition():
        if process.poll() is not None:
            raise SystemExit(f"the job ended before {what}: {process.communicate()[0]}")
        time.sleep(0.2)


def exercise(calls: Calls) -> None:
    """Everything that may happen to one slot, then to the next ones."""
    began = time.monotonic()
    first = subprocess.Popen(
        calls.command("--follow"),
        cwd=ROOT,
        env=calls.head.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until((calls.workdir / ".lock").exists, first, "it held its workdir")
    calls.call("the same id while it runs")
    calls.call("another command for the same slot", more=["--no-tracking"])
    calls.call("the same id, following it to its end", "--follow")
    told = first.communicate()[0]
    calls.note("the first call, which submitted it", first.returncode, time.monotonic() - began, told)
    calls.call("the same id after its end")
    wrong = calls.head.folder / "wrong"
    wrong.write_text("0" * 64)
    wrong.chmod(0o600)
    calls.call("a wrong token", slot="2", token=wrong)
    calls.call("the next slot, nothing new", "--follow", slot="2")
    with (calls.workdir / ".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        calls.call("a slot while another run has the workdir", "--follow", slot="3")
    calls.call("that slot again with --retry", "--follow", "--retry", slot="3")


EXPECTED = [0, 2, 0, 0, 0, 2, 0, 75, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/emoji.yaml")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_head(name="jobs", cpus=2) as head:
        calls = Calls(head, Path(folder) / "runs", given.config)
        exercise(calls)
        jobs, attempts = submitted_jobs(head), stage_attempts(calls.workdir)
        logs = sorted(path.name for path in (calls.workdir / "logs").glob("run-*.log"))
    print("\nexit  seconds  call")
    for what, code, seconds in calls.rows:
        print(f"{code:4} {seconds:8.1f}  {what}")
    print(f"jobs of the cluster: {jobs}\nattempts at each stage: {attempts}\nlogs of runs that did work: {len(logs)}")
    codes = [code for _, code, _ in calls.rows]
    once = set(attempts.values()) == {1} and len(logs) == 1 and sum(job == "retrain-1" for job in jobs) == 1
    print(json.dumps({"codes": codes, "as expected": codes == EXPECTED, "ran once": once, "jobs": jobs}))
    sys.exit(0 if once and codes == EXPECTED else 1)


if __name__ == "__main__":
    main()
