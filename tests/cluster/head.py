"""A Ray head on this machine, started by the recipe, beside whatever other Rays run here."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import patient
from tests.kill_and_resume import descendants
from tests.small import ROOT

RECIPE = ROOT / "configs/cluster/start_ray.sh"
PATIENCE = 300
"""Seconds that starting or refusing may take on a busy machine before it counts as hanging."""


@dataclass(frozen=True)
class Head:
    """A head that runs."""

    process: subprocess.Popen[str]
    address: str
    """For drivers, HOST:PORT."""
    dashboard: str
    """For jobs, a URL; nothing listens there where the head was told to do without."""
    token: Path
    """The file of its token."""
    folder: Path
    """Of its own; its home and its temporary files lie there."""

    def environment(self, token: Path | None = None) -> dict[str, str]:
        """Return the environment of a process that shows this token, or the right one, to the head."""
        return environment(token or self.token)


def environment(token: Path, **more: str) -> dict[str, str]:
    ours = {
        "RAY": str(Path(sys.executable).parent / "ray"),
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_AUTH_MODE": "token",
        "PYTHONPATH": str(ROOT),
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**inherited, **ours, "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_head(*options: str, name: str = "head", cpus: int = 1) -> Iterator[Head]:
    """Start a head with some more options and the token that the recipe makes; stop it by its processes' ids."""
    folder = Path(f"/tmp/ray-{name}-{os.getpid()}")  # short: sockets' names may have 107 letters
    folder.mkdir()
    token, said = folder / ".ray" / "auth_token", folder / "head.txt"
    try:
        for _ in range(3):  # though it is patient
            port, dashboard = free_port(), free_port()
            process = _start([f"--dashboard-port={dashboard}", *options], folder, token, port, said, cpus)
            if _started(process, said):
                break
            stop(process)
        assert process.poll() is None, said.read_text()
        yield Head(process, f"{local_address()}:{port}", f"http://127.0.0.1:{dashboard}", token, folder)
    finally:
        stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def stop(process: subprocess.Popen[str]) -> None:
    """Kill a process and all below it: `ray stop` would take every Ray of this machine."""
    for pid in [*descendants(process.pid), process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def local_address() -> str:
    from ray.util import get_node_ip_address

    return str(get_node_ip_address())


def _start(options: list[str], folder: Path, token: Path, port: int, said: Path, cpus: int) -> subprocess.Popen[str]:
    own = [*patient.port_options(), f"--ray-client-server-port={free_port()}"]
    quiet = [
        "--block",
        "--no-monitor",
        f"--num-cpus={cpus}",
        f"--temp-dir={folder}/ray",
        "--object-store-memory=80000000",
    ]
    ray = folder / "ray.sh"
    ray.write_text(f'#!/bin/sh\nexec {sys.executable} {patient.__file__} "$@"\n')
    ray.chmod(0o755)
    with said.open("w") as file:
        return subprocess.Popen(
            [RECIPE, "head", *quiet, *own, *options],
            env=environment(token, RAY=str(ray), RAY_PORT=str(port), HOME=str(folder)),
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
        )


def _started(process: subprocess.Popen[str], said: Path) -> bool:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if "Ray runtime started" in said.read_text():
            return True
        time.sleep(0.5)
    return False
