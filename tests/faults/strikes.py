"""The faults of chaos: each starts or resumes the pipeline, strikes it at a moment drawn by lot, and waits."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.driver import Driver
from tests.faults.experiment import SECONDS
from tests.faults.full_disk import obey_permissions
from tests.faults.world import World, last_commit
from tests.kill_a_rank import rank_processes
from tests.kill_and_resume import STAGES, kill_all, start


def signalled(fault: str, number: int, code: int) -> Callable[[World], None]:
    """A fault that is a signal to the driver."""

    def run(world: World) -> None:
        driver = world.experiment.start(world.workdir)
        if driver.wait(world.moment()) is None:
            world.strike(fault)
            driver.send(number)
            driver.wait(SECONDS)
        # Before the run has said a word the system itself ends it, with what a shell calls the same code.
        world.settle(driver, 0, code, *([] if driver.text else [-number]))

    return run


def stop_and_go_on(world: World) -> None:
    """The driver is stopped for a while; a second driver is refused meanwhile; the first one finishes."""
    driver = world.experiment.start(world.workdir)
    if driver.wait(world.moment()) is None and (world.workdir / ".lock").exists():
        world.strike("SIGSTOP and CONT")
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


def something_finished(world: World) -> list[Path]:
    """The files of finished artifacts; where there is none, some stages are run first."""
    if not finished_files(world.workdir):
        world.settle(world.experiment.run(world.workdir, "--stages", f"shard..{world.luck.choice(STAGES)}"), 0)
    return finished_files(world.workdir)


def file_lost(world: World) -> None:
    """A finished file is removed or cut short, or a whole unit is: the next run makes it again."""
    files = something_finished(world)
    for pattern in ("checkpoints/*/*/step-*/state.safetensors", "units/*/*/unit.json", "*/latest.json"):
        files += world.workdir.glob(pattern)
    path, how = world.luck.choice(sorted(files)), world.luck.choice(("removed", "cut", "folder removed"))
    data = path.read_bytes()
    world.strike("file lost or cut")
    if how == "folder removed" and "units" in path.parts:
        shutil.rmtree(path.parent)
    else:
        path.unlink()
        if how == "cut":
            path.write_bytes(data[: world.luck.randrange(len(data))])
    world.settle(world.experiment.run(world.workdir), 0)


def bit_flipped(world: World) -> None:
    """One bit of a finished file is flipped: --verify names the file; without it the next run makes it again."""
    path = world.luck.choice(sorted(something_finished(world)))
    data = bytearray(path.read_bytes())
    data[world.luck.randrange(len(data))] ^= 1 << world.luck.randrange(8)
    world.strike("bit flipped")
    path.unlink()  # its second name, for people, keeps the good bytes
    path.write_bytes(data)
    seen = world.experiment.run(world.workdir, "--verify")
    if seen.code != 1 or f"{path} differs" not in seen.text:
        world.complaints.append(f"--verify did not name {path}: {seen.code} {seen.text[-1500:]}")
    path.unlink()
    world.settle(world.experiment.run(world.workdir), 0)


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
    "SIGSTOP and CONT": (2, stop_and_go_on),
    "disk full": (4, disk_full),
    "permission lost": (3, permission_lost),
    "file lost or cut": (4, file_lost),
    "bit flipped": (3, bit_flipped),
    "worker SIGKILL (Ray)": (1, worker_killed),
}
"""How often each is drawn, and what it does."""
