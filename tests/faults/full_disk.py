"""Lets the disk run full, become read-only and refuse permission in every stage, and makes the same command go on.

    python -m tests.faults.full_disk [--seed 0] [--only full,read-only,permission,places]

works on a small tmpfs (so it needs root; otherwise it says so and ends). For each stage the disk is filled until what
is left is less than the stage writes; the run must end with code 1 and a message that names the place and the remedy,
nothing partial may be accepted, and after room was made the same command must end with the bytes of a calm run.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.driver import Driver, preload
from tests.faults.experiment import Experiment, restore
from tests.kill_and_resume import STAGES, digests

ROOM = 256 * 2**20
"""Bytes of the disk while there is room."""
PAGE = 4096
OVERRIDE_PERMISSIONS = (1, 2, 3)
"""Linux capabilities by which root writes and reads what permissions forbid."""


@dataclass
class SmallDisk:
    """A mounted tmpfs that can be filled and emptied again."""

    place: Path

    def remount(self, *options: str) -> None:
        """Change its size or whether it is read-only."""
        subprocess.run(["mount", "-o", ",".join(("remount", *options)), str(self.place)], check=True)

    def used(self) -> int:
        """Bytes that are taken."""
        status = os.statvfs(self.place)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def fill(self, left: int) -> None:
        """Leave so many bytes. There is always a page in use: a tmpfs of size 0 would have no limit."""
        (self.place / "filler").write_bytes(bytes(PAGE))
        self.remount(f"size={self.used() + max(0, left) // PAGE * PAGE}")

    def empty(self) -> None:
        """Make room again."""
        self.remount(f"size={ROOM}", "rw")


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[SmallDisk]:
    """Mount a tmpfs for the time of the block. Raises CalledProcessError where that is not allowed."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "smalti", str(place)], check=True)
    try:
        yield SmallDisk(place)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def obey_permissions() -> None:
    """Let this process be refused what permissions forbid, though it is root's."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    header, sets = Header(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), "capget")
    for capability in OVERRIDE_PERMISSIONS:
        for kind in range(3):  # effective, permitted, inheritable
            sets[kind] &= ~(1 << capability)
    if libc.capset(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), "capset")


def message_of(driver: Driver) -> str:
    """The line that says what went wrong, without the folder of the experiment."""
    errors = [line for line in driver.text.splitlines() if line.startswith(("error: ", "note: tracking"))]
    return re.sub(r"/\S*/disk/", "", errors[-1].removeprefix("error: ")) if errors else "NO MESSAGE"


def report(fault: str, where: str, driver: Driver, faults: list[str]) -> int:
    """Print a row; return whether it is bad."""
    if "Traceback" in driver.text:
        faults = [*faults, f"a traceback: {driver.text[-1500:]}"]
    verdict = "as promised" if not faults else "WRONG"
    print(f"{fault:12}{where:14}{driver.code!s:>5}  {verdict:12} {message_of(driver)[:150]}", flush=True)
    print(*(f"    {line}" for line in faults), sep="\n", end="\n" if faults else "", flush=True)
    return int(bool(faults))


def go_on(experiment: Experiment, workdir: Path, stage: str, expected: str) -> list[str]:
    """Run the same command again and return what is wrong with what it made."""
    again = experiment.run(workdir, "--stages", stage)
    if again.code:
        return [f"the same command ended with {again.code}: {again.text[-1500:]}"]
    same = digests(workdir, (stage,))[stage] == expected
    return [*experiment.wrong(workdir), *([] if same else ["another digest than a calm run's"])]


def pages(folder: Path) -> int:
    """Bytes that the files of a folder take."""
    sizes = (path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(-(-size // PAGE) * PAGE for size in sizes)


def full_in(experiment: Experiment, disk: SmallDisk, stage: str, share: float) -> int:
    """Leave a share of what the stage adds. Its peak is not known, so what still fits is tried with less."""
    workdir, later = disk.place / "runs", STAGES[STAGES.index(stage) + 1 :]
    added = pages(experiment.before(later[0]) if later else experiment.calm) - pages(experiment.before(stage))
    while True:
        disk.empty()
        restore(experiment.before(stage), workdir)
        disk.fill(int(share * added))
        driver = experiment.run(workdir, "--stages", stage)
        if driver.code != 0 or share * added < PAGE:
            break
        share /= 2
    good = driver.code == 1 and "make room, then run the same command again" in driver.text
    disk.empty()
    faults = [] if good else ["exit code or words"]
    faults += experiment.wrong(workdir) + go_on(experiment, workdir, stage, experiment.digests[stage])
    return report("disk full", stage, driver, faults)


def full_from_the_start(experiment: Experiment, disk: SmallDisk) -> int:
    """No byte is left for the lock's holder, the log, or anything."""
    disk.empty()
    shutil.rmtree(disk.place / "runs", ignore_errors=True)
    disk.fill(0)
    driver = experiment.run(disk.place / "runs", "--stages", "shard")
    disk.empty()
    faults = [] if driver.code == 1 and "make room" in driver.text else ["exit code or words"]
    faults += go_on(experiment, disk.place / "runs", "shard", experiment.digests["shard"])
    return report("disk full", "lock and log", driver, faults)


def full_for_the_tracker(experiment: Experiment, disk: SmallDisk) -> int:
    """MLflow's database lies on the full disk, the workdir does not: the run goes on without its tracker."""
    disk.empty()
    disk.fill(16 * PAGE)
    workdir = experiment.folder / "tracked"
    arguments = [word for word in experiment.arguments(workdir, "--stages", "shard") if word != "--no-tracking"]
    from tests.faults.driver import start

    driver = start([*arguments, f"tracking.uri=sqlite:///{disk.place}/mlflow.db"], experiment.folder / "driver.log")
    driver.wait()
    faults = [] if driver.code == 0 and "the run goes on without it" in driver.text else ["exit code or words"]
    faults += experiment.wrong(workdir)
    return report("disk full", "tracker", driver, faults)


def read_only_in(experiment: Experiment, disk: SmallDisk, stage: str, share: float) -> int:
    """The disk becomes read-only while a stage runs (before it, where files that are written keep it from that)."""
    disk.empty()
    workdir = disk.place / "runs"
    restore(experiment.before(stage), workdir)
    driver = experiment.start(workdir, "--stages", stage)
    driver.wait(share * experiment.seconds[stage])
    driver.send(signal.SIGSTOP)
    if subprocess.run(["mount", "-o", "remount,ro", str(disk.place)], check=False, capture_output=True).returncode:
        driver.kill()  # files are open for writing: the kernel makes nothing read-only below them
        disk.remount("ro")
        driver = experiment.start(workdir, "--stages", stage)
    driver.send(signal.SIGCONT)
    driver.wait()
    disk.empty()
    faults = [] if driver.code == 1 and "it is read-only" in driver.text else ["exit code or words"]
    faults += experiment.wrong(workdir) + go_on(experiment, workdir, stage, experiment.digests[stage])
    return report("read-only", stage, driver, faults)


def forbidden_in(experiment: Experiment, disk: SmallDisk, stage: str, share: float) -> int:
    """Half way through, no folder of the workdir may be written to any more."""
    disk.empty()
    workdir = disk.place / "runs"
    restore(experiment.before(stage), workdir)
    driver = experiment.start(workdir, "--stages", stage, before=obey_permissions)
    driver.wait(share * experiment.seconds[stage])
    folders = [workdir, *(path for path in workdir.rglob("*") if path.is_dir() and not path.is_symlink())]
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            folder.chmod(0o555)
    driver.wait()
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            folder.chmod(0o755)
    if driver.code == 0:
        assert share > 0.01, "it finishes whatever is done"
        return forbidden_in(experiment, disk, stage, share / 2)  # it had finished before
    faults = [] if driver.code == 1 and "permission was denied" in driver.text else ["exit code or words"]
    faults += experiment.wrong(workdir) + go_on(experiment, workdir, stage, experiment.digests[stage])
    return report("permission", stage, driver, faults)


def main() -> int:
    """Try all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="full,read-only,permission,places")
    parser.add_argument("--stages", default=",".join(STAGES))
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("needs root, to mount a small tmpfs")
        return 0
    preload()
    luck, bad = random.Random(options.seed), 0
    kinds = {"full": full_in, "read-only": read_only_in, "permission": forbidden_in}
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="smalti-full-") as name:
        experiment = Experiment(Path(name))
        started = time.monotonic()
        experiment.run_calmly()
        print(f"a calm run takes {time.monotonic() - started:.0f} s\n{'fault':12}{'where':14} exit", flush=True)
        with small_disk(Path(name) / "disk") as disk:
            for kind in options.only.split(","):
                if kind == "places":
                    bad += full_from_the_start(experiment, disk) + full_for_the_tracker(experiment, disk)
                    continue
                for stage in options.stages.split(","):
                    bad += kinds[kind](experiment, disk, stage, luck.uniform(0.1, 0.7))
    print(f"{bad} not as promised")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
