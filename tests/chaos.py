"""Chaos: seeded random faults against a small pipeline for some minutes, and after each a look at all that is finished.

    python -m tests.chaos [--minutes 15] [--seed 0] [--only FAULT,...]

A round starts (or resumes) the pipeline, does something terrible at a moment drawn by lot, and checks: every manifest
verifies, no unit is lost, no sample is drawn twice, histories of training have no gap or overlap, and what is finished
has the digests of a calm run. When all stages are finished the next round begins with an empty workdir. Prints a line
for each round and a table at the end; the exit code is 1 after any violation. The seed decides faults, files and
moments (as shares of a calm run's seconds). As root it mounts a small disk to fill; otherwise it leaves that out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.driver import Driver, preload
from tests.faults.experiment import SECONDS, Experiment
from tests.faults.full_disk import SmallDisk, obey_permissions, small_disk
from tests.kill_a_rank import rank_processes
from tests.kill_and_resume import STAGES, kill_all, start


@dataclass
class Tally:
    """What the rounds of one fault came to."""

    rounds: int = 0
    struck: int = 0
    """Rounds in which the run was still going, or there was a file to damage."""
    recoveries: int = 0
    """Runs that ended well after the fault."""
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
        tally = self.tallies[fault]
        tally.struck += 1
        tally.lost += min(time.time() - last_commit(self.workdir), max(self.experiment.seconds.values()))
        self.struck_at = (fault, time.time())

    def settle(self, driver: Driver, *expected: int | None) -> None:
        """Note how a run ended, and when the first commit after the last fault came."""
        if driver.code not in expected:
            self.complaints.append(f"a run ended with {driver.code}, not {expected}: {driver.text[-2500:]}")
        if self.struck_at is not None and last_commit(self.workdir) > self.struck_at[1]:
            fault, when = self.struck_at
            self.tallies[fault].seconds.append(first_commit_after(self.workdir, when) - when)
            self.struck_at = None
        if driver.code == 0:
            for tally in self.tallies.values():
                tally.recoveries += tally.struck > tally.recoveries


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


def signalled(fault: str, number: int, code: int) -> Callable[[World], None]:
    """A fault that is a signal to the driver."""

    def run(world: World) -> None:
        driver = world.experiment.start(world.workdir)
        if driver.wait(world.moment()) is None:
            world.strike(fault)
            driver.send(number)
            driver.wait(SECONDS)
        world.settle(driver, 0, code)

    return run


def stop_and_go_on(world: World) -> None:
    """The driver is stopped for a while; a second driver is refused meanwhile; the first one finishes."""
    driver = world.experiment.start(world.workdir)
    if driver.wait(world.moment()) is None and (world.workdir / ".lock").exists():
        world.strike("SIGSTOP, two drivers")
        driver.send(signal.SIGSTOP)
        second = world.experiment.start(world.workdir, log="second.log")
        second.wait(SECONDS)
        driver.send(signal.SIGCONT)
        if second.code != 75 and driver.poll() is None:
            world.complaints.append(f"the second driver ended with {second.code}: {second.text[-1500:]}")
    driver.wait(SECONDS)
    world.settle(driver, 0)


def disk_full(world: World) -> None:
    """The disk has no more room, from a moment on."""
    assert world.disk is not None
    driver = world.experiment.start(world.workdir)
    if driver.wait(world.moment()) is None:
        world.strike("disk full")
        world.disk.fill(world.luck.randrange(64) * 4096)
    driver.wait(SECONDS)
    world.disk.empty()
    if driver.code == 1 and "make room, then run the same command again" not in driver.text:
        world.complaints.append(f"no word of a full disk: {driver.text[-2500:]}")
    world.settle(driver, 0, 1)


def permission_lost(world: World) -> None:
    """From a moment on no folder may be written to."""
    driver = world.experiment.start(world.workdir, before=obey_permissions)
    folders: list[Path] = []
    if driver.wait(world.moment()) is None:
        world.strike("permission lost")
        folders = [world.workdir, *(p for p in world.workdir.rglob("*") if p.is_dir() and not p.is_symlink())]
    for mode in (0o555, 0o755):
        for folder in folders:
            with contextlib.suppress(FileNotFoundError):
                folder.chmod(mode)
        driver.wait(SECONDS)
    if driver.code == 1 and "permission was denied" not in driver.text:
        world.complaints.append(f"no word of permission: {driver.text[-2500:]}")
    world.settle(driver, 0, 1)


def finished_files(workdir: Path) -> list[Path]:
    """All files that a finished artifact consists of."""
    found: list[Path] = []
    for path in sorted(workdir.glob("*/*/manifest.json")):
        if not path.parent.is_symlink():
            manifest = json.loads(path.read_text())
            found += [path.parent / entry["path"] for entry in manifest["files"]]
            home = workdir / "units" / manifest["stage"]
            found += [home / unit["key"][:32] / it["path"] for unit in manifest["units"] for it in unit["files"]]
    return [path for path in found if path.exists() and path.stat().st_size > 0]


def file_lost(world: World) -> None:
    """A finished file is removed or cut short, or a whole unit is: the next run makes it again."""
    files = [*finished_files(world.workdir), *world.workdir.glob("checkpoints/*/*/step-*/state.safetensors")]
    files += [*world.workdir.glob("units/*/*/unit.json"), *world.workdir.glob("*/latest.json")]
    if files:
        path = world.luck.choice(sorted(files))
        world.strike("file lost or cut")
        data, how = path.read_bytes(), world.luck.choice(("removed", "cut", "folder removed"))
        if how == "folder removed" and "units" in path.parts:
            shutil.rmtree(path.parent)
        else:
            path.unlink()
            if how == "cut":
                path.write_bytes(data[: world.luck.randrange(len(data))])
    driver = world.experiment.run(world.workdir)
    world.settle(driver, 0)


def bit_flipped(world: World) -> None:
    """One bit of a finished file is flipped: --verify names the file; without it the next run makes it again."""
    files = finished_files(world.workdir)
    if files:
        path = world.luck.choice(sorted(files))
        world.strike("bit flipped")
        data = bytearray(path.read_bytes())
        data[world.luck.randrange(len(data))] ^= 1 << world.luck.randrange(8)
        path.unlink()  # its second name, for people, keeps the good bytes
        path.write_bytes(data)
        seen = world.experiment.run(world.workdir, "--verify")
        if seen.code != 1 or f"{path} differs" not in seen.text:
            world.complaints.append(f"--verify did not name {path}: {seen.code} {seen.text[-1500:]}")
        path.unlink()
    driver = world.experiment.run(world.workdir)
    world.settle(driver, 0)


def worker_killed(world: World) -> None:
    """With Ray: a worker process is killed, the driver goes on with another."""
    arguments = ["--config", str(world.experiment.config), "--workdir", str(world.workdir), "--no-tracking"]
    process = start([*arguments, "cluster.unit_workers=2", "cluster.max_failures=5"])
    struck = False
    wait_until = time.monotonic() + SECONDS
    while process.poll() is None and not struck and time.monotonic() < wait_until:
        time.sleep(0.1)
        workers = rank_processes(process.pid)
        if workers and last_commit(world.workdir) < time.time():
            time.sleep(world.luck.uniform(0, 3))
            struck = any(_killed(pid) for pid in world.luck.sample(workers, 1))
    if struck:
        world.strike("worker SIGKILL (Ray)")
    try:
        text, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        kill_all(process)
        text = "hung"
    log = world.experiment.folder / "ray.log"
    log.write_text(text)
    world.settle(Driver(process.pid, log, process.returncode), 0)


def _killed(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


FAULTS: dict[str, tuple[int, Callable[[World], None]]] = {
    "driver SIGKILL": (8, signalled("driver SIGKILL", signal.SIGKILL, -signal.SIGKILL)),
    "driver SIGTERM": (4, signalled("driver SIGTERM", signal.SIGTERM, 143)),
    "SIGSTOP, two drivers": (2, stop_and_go_on),
    "disk full": (4, disk_full),
    "permission lost": (3, permission_lost),
    "file lost or cut": (4, file_lost),
    "bit flipped": (3, bit_flipped),
    "worker SIGKILL (Ray)": (1, worker_killed),
}
"""How often each is drawn, and what it does."""


def play_round(world: World, number: int, fault: str) -> None:
    """One fault, then a look; an empty workdir follows a finished pipeline now and then."""
    tally = world.tallies.setdefault(fault, Tally())
    tally.rounds += 1
    struck, started, before = tally.struck, time.monotonic(), len(world.complaints)
    FAULTS[fault][1](world)
    world.complaints += world.experiment.wrong(world.workdir)
    finished = [stage for stage in STAGES if any(world.workdir.glob(f"{stage}/*/manifest.json"))]
    did = "struck" if tally.struck > struck else "nothing to strike"
    verdict = "WRONG" if len(world.complaints) > before else "all well"
    shown = f"{number:4} {fault:22}{did:19}{time.monotonic() - started:6.1f} s  {len(finished)} finished  {verdict}"
    print(shown, *world.complaints[before:], sep="\n     ", flush=True)
    if len(finished) == len(STAGES):
        world.finishes += 1
        if world.luck.random() < 0.7:
            shutil.rmtree(world.workdir)


def print_table(world: World) -> None:
    """What each fault cost."""
    print(f"\n{'fault':24}{'rounds':>7}{'struck':>8}{'median s':>10}{'worst s':>9}{'work lost, s':>14}")
    for fault, tally in world.tallies.items():
        seconds = sorted(tally.seconds) or [float("nan")]
        middle, lost = seconds[len(seconds) // 2], tally.lost / max(1, tally.struck)
        print(f"{fault:24}{tally.rounds:7}{tally.struck:8}{middle:10.1f}{seconds[-1]:9.1f}{lost:14.1f}")
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
