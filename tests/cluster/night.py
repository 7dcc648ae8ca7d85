"""One training on three nodes through a bad night: workers and nodes die, or the network is cut.

    python -m tests.cluster.night --workers 3 --nodes 2 --seed 1
    python -m tests.cluster.night --stops 1 --workers 0 --nodes 0
    python -m tests.cluster.night --cut 30          as root: nodes in network namespaces, the cable of one is pulled
    python -m tests.cluster.night --cut inf         the same for good

prints every fault, when it was noticed and when training had passed the step it had reached before; then whether it
finished, whether the committed training saw every sample exactly once in order, and its last losses beside those of
an undisturbed run on one rank.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from pipeline.artifacts import Artifact
from pipeline.config import ClusterConfig
from pipeline.ray_runtime.connection import connect
from pipeline.storage import Folder
from tests.cluster.namespaces import Network, network
from tests.cluster.raylets import Raylets, raylets
from tests.cluster.recording import (
    RecordingLocal,
    RecordingRay,
    Row,
    check_exactly_once,
    committed_history,
    rows_of,
)
from tests.cluster.trainings import Training, training

PATIENCE = 1800
"""Seconds that a recovery may take before the night is called lost."""


@dataclass
class Fault:
    """What was done, and what came of it."""

    what: str
    step: int
    began: float
    noticed: float | None = None
    message: str = ""
    recovered: float | None = None
    resumed_at: int | None = None
    ranks: int | None = None

    def line(self) -> str:
        lost = "-" if self.resumed_at is None else str(self.step + 1 - self.resumed_at)
        noticed = "-" if self.noticed is None else f"{self.noticed - self.began:.1f}"
        recovered = "-" if self.recovered is None else f"{self.recovered - self.began:.1f}"
        return f"{self.what:<34} {self.step:>5} {noticed:>9} {recovered:>10} {lost:>6} {self.ranks or '-':>6}"


@dataclass
class Night:
    """A training that runs in a thread of its own, and what happens to it."""

    running: Future[Artifact]
    runtime: RecordingRay
    records: Path
    luck: random.Random
    faults: list[Fault] = field(default_factory=list)

    def newest(self) -> list[Row]:
        """Rows of the start of the gang that runs now."""
        rows = rows_of(self.records)
        last = max((row.attempt for row in rows), default="")
        return [row for row in rows if row.attempt == last]

    def reached(self, attempt: str) -> int:
        """Return the last step of a start of the gang."""
        return max(row.step for row in rows_of(self.records) if row.attempt == attempt)

    def wait_for(self, condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
        """Return the condition's value once there is one; None if the training has ended before."""
        waited = 0.0  # not by the clock: a process that was stopped itself has not waited
        while not (value := condition()):
            if self.running.done():
                return None
            waited += 0.1
            if waited > patience:
                raise SystemExit(f"{what}: not within {patience:.0f} s; heard: {self.runtime.warnings}")
            time.sleep(0.1)
        return value

    def victim(self) -> tuple[int, int, str]:
        """Return (rank, pid, node) of a rank of the running start."""
        last = max(path.stem for path in self.records.glob("*.pid")).rpartition("-")[0]
        path = self.luck.choice(sorted(self.records.glob(f"{last}-*.pid")))
        pid, node = json.loads(path.read_text())
        return int(path.stem.rpartition("-")[2]), pid, node

    def do(self, at: int, what: str, act: Callable[[], str], heal: Callable[[], None] = lambda: None) -> None:
        """Do something to the training at a step, set it right, and wait until it has passed that step again."""
        self.wait_for(lambda: max((row.step for row in self.newest() if row.rank == 0), default=0) >= at, f"step {at}")
        if self.running.done():
            print(f"{what}: training had ended before step {at}", flush=True)
            return
        attempt = self.newest()[0].attempt
        fault = Fault(what, 0, time.time())
        self.faults.append(fault)
        fault.what = f"{what}: {act()}"
        step = self.reached(attempt)
        heal()

        def passed() -> list[Row]:
            """Rows beyond the step of the fault: of another start; a network that came back may go on with the same."""
            rows = self.newest()
            beyond = self.reached(attempt) if rows[0].attempt != attempt else step + 3
            same_will_do = what == "cut"
            return [row for row in rows if row.step > beyond and (same_will_do or row.attempt != attempt)]

        found = self.wait_for(passed, fault.what)
        if not found:
            return
        fault.step = self.reached(attempt) if found[0].attempt != attempt else step
        fault.recovered, fault.ranks = min(row.time for row in found), found[0].world
        if found[0].attempt != attempt:
            fault.resumed_at = min(row.step for row in self.newest())
        heard = [(when, message) for when, message in self.runtime.warnings if when >= fault.began]
        if heard:
            fault.noticed, fault.message = heard[0]
        print(fault.line(), flush=True)
        for when, message in heard:
            print(f"    {when - fault.began:6.1f} s  {message}", flush=True)


def disturb_raylets(night: Night, cluster: Raylets, options: argparse.Namespace) -> None:
    """Kill and stop workers, kill nodes, at seeded moments in a seeded order."""
    kinds = ["worker"] * options.workers + ["node"] * options.nodes + ["stop"] * options.stops
    night.luck.shuffle(kinds)
    spacing = options.steps / (len(kinds) + 1)
    for number, kind in enumerate(kinds, start=1):
        at = int(spacing * (number - 1) + night.luck.uniform(0.3, 0.9) * spacing)

        def act(kind: str = kind) -> str:
            rank, pid, node = night.victim()
            if kind == "node":
                cluster.kill(cluster.node(node))
            else:
                os.kill(pid, signal.SIGKILL if kind == "worker" else signal.SIGSTOP)
            return f"of rank {rank}"

        night.do(at, {"worker": "worker killed", "node": "node killed", "stop": "worker stopped"}[kind], act)
        if kind == "node":
            cluster.add()


def disturb_network(night: Night, net: Network, options: argparse.Namespace) -> None:
    """Pull the cable of a rank's node, and put it back after a time."""
    cut_off: list[Any] = []

    def act() -> str:
        rank, _, node = night.victim()
        address = next(entry["NodeManagerAddress"] for entry in ray.nodes() if entry["NodeID"] == node)
        cut_off.append(net.machine(address))
        net.cut(cut_off[0])
        return f"rank {rank}'s node off for {options.cut:.0f} s"

    short = options.cut < options.hang_timeout

    def heal() -> None:
        if short:
            time.sleep(options.cut)
            net.mend(cut_off[0])

    night.do(int(options.steps * 0.3), "cut", act, heal)
    if not short and math.isfinite(options.cut):
        night.wait_for(lambda: time.time() > night.faults[0].began + options.cut, "the cable", math.inf)
        net.mend(cut_off[0])
        print(f"    {time.time() - night.faults[0].began:6.1f} s  the cable is back; Ray gave the node up", flush=True)
        net.add()  # what a supervisor does when the raylet has ended itself


def show(night: Night, task: Training, calm: Artifact, ended: Artifact) -> bool:
    """Print the verdict; return whether all is well."""
    print(f"\nfinished; starts of the gang: {json.dumps(ended.notes['gang'], indent=1)}")
    history = committed_history(rows_of(night.records), task.steps)
    seen = check_exactly_once(history, task.batch_size, task.counts, task.seed)
    print(f"{seen} samples seen in {task.steps} steps: each exactly once an epoch, in the order's order")
    seconds = [fault.recovered - fault.began for fault in night.faults if fault.recovered is not None]
    if seconds:
        print(f"recoveries {len(seconds)}: median {statistics.median(seconds):.1f} s, worst {max(seconds):.1f} s")
    rows = [json.loads(line) for line in ended.local("history.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if task.loss in row]
    assert steps == list(range(1, task.steps + 1)), "the recorded history has a gap or an overlap"
    print(f"the recorded history has rows 1 to {task.steps}, without gap or overlap")
    worst = 0.0
    for mine, theirs in zip(_losses(ended, task), _losses(calm, task), strict=True):
        worst = max(worst, abs(mine - theirs) / abs(theirs))
    print(f"largest relative difference of {task.loss} from the calm run on one rank: {worst:.1e}")
    return worst < 1e-2


def _losses(artifact: Artifact, task: Training) -> list[float]:
    rows = [json.loads(line) for line in artifact.local("history.jsonl").read_text().splitlines()]
    return [row[task.loss] for row in rows if task.loss in row]


def main() -> int:
    """Train calmly, train through the night, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", choices=("prior", "tokenizer"), default="prior")
    parser.add_argument("--workers", type=int, default=3, help="workers to kill")
    parser.add_argument("--nodes", type=int, default=2, help="nodes to kill; each comes back")
    parser.add_argument("--stops", type=int, default=0, help="workers to stop with SIGSTOP")
    parser.add_argument("--cut", type=float, help="seconds for which the network of a node is cut, instead")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--pause", type=float, default=0.2, help="seconds that a step takes at least")
    parser.add_argument("--hang-timeout", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="smalti-night-") as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "records").mkdir()
        (folder / "calm-records").mkdir()
        task = training(options.training, folder, options.steps)
        settings = ClusterConfig(num_workers=(1, 3), threads=1, checkpoint_every=20, hang_timeout=options.hang_timeout)
        calm = task.run(folder / "calm", RecordingLocal(ClusterConfig(threads=1), records=str(folder / "calm-records")))
        calm_history = committed_history(rows_of(folder / "calm-records"), task.steps)
        cut = options.cut is not None
        cluster: Any = stack.enter_context(network(3) if cut else raylets(3))
        workdir = folder / "night"
        runtime = RecordingRay(
            settings, cluster.address, Folder.at(workdir), records=str(folder / "records"), pause=options.pause
        )
        connect(settings, cluster.address)
        if cut:
            cluster.wait(3)
        pool = stack.enter_context(ThreadPoolExecutor(1))
        night = Night(pool.submit(task.run, workdir, runtime), runtime, folder / "records", random.Random(options.seed))
        print(f"the cluster is up ({len(ray.nodes())} nodes), training begins", flush=True)
        print(f"{'fault':<34} {'step':>5} {'noticed s':>9} {'recovered s':>10} {'lost':>6} {'ranks':>6}", flush=True)
        (disturb_network if cut else disturb_raylets)(night, cluster, options)
        ended = night.running.result(timeout=PATIENCE)
        good = show(night, task, calm, ended)
        same = committed_history(rows_of(night.records), task.steps) == calm_history
        print(f"the same samples at the same steps as the calm run: {'yes' if same else 'NO'}")
        runtime.release()
    return int(not (good and same))


if __name__ == "__main__":
    sys.exit(main())
