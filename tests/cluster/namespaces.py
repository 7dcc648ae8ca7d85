"""Ray nodes in network namespaces of their own: what they say crosses an interface, which can be cut.

Needs root and iproute2. Each node also has a mount namespace, so that folders can be hidden from it: a node that does
not share the workdir, or has no checkout.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ray

from tests.cluster import patient

STORE_BYTES = 80 * 2**20
START_SECONDS = 600
_NETWORKS = itertools.count(1)
"""Those of this process may stand side by side."""


def possible() -> bool:
    """Whether this process may make network namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"smtry{os.getpid() % 10_000}"
    if subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True).returncode:
        return False
    subprocess.run(["ip", "netns", "del", name], check=True)
    return True


def _ip(text: str) -> None:
    subprocess.run(["ip", *text.split()], check=True)


@dataclass
class Machine:
    """A node in a namespace."""

    number: int
    namespace: str
    link: str
    """The end of its cable that is plugged into the bridge."""
    address: str
    process: subprocess.Popen[bytes]


@dataclass
class Network:
    """A head on this machine's side of a bridge, and machines on the other."""

    name: str
    address: str
    """Of Ray's head: HOST:PORT."""
    subnet: str
    folder: Path
    machines: list[Machine] = field(default_factory=list)
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add(self, *, cpus: int = 1, hidden: Sequence[Path] = ()) -> Machine:
        """Start a node; `hidden` folders are empty there."""
        number = max((machine.number for machine in self.machines), default=0) + 1
        namespace, link, address = f"{self.name}n{number}", f"{self.name}v{number}", f"{self.subnet}.{10 + number}"
        _ip(f"netns add {namespace}")
        _ip(f"link add {link} type veth peer name eth0 netns {namespace}")
        _ip(f"link set {link} master {self.name} up")
        _ip(f"-n {namespace} addr add {address}/24 dev eth0")
        _ip(f"-n {namespace} link set eth0 up")
        _ip(f"-n {namespace} link set lo up")
        hide = "".join(f"mount -t tmpfs none {shlex.quote(str(folder))} && " for folder in hidden)
        start = _ray_start(f"--address={self.address}", f"--node-ip-address={address}", f"--num-cpus={cpus}")
        process = self._run(
            ["ip", "netns", "exec", namespace, "sh", "-c", f"{hide}exec {shlex.join(start)}"], f"node-{number}.log"
        )
        machine = Machine(number, namespace, link, address, process)
        self.machines.append(machine)
        # One after another: on one file system, nodes that start together choose the same names for their sockets.
        _wait_until(lambda: b"Ray runtime started" in (self.folder / f"node-{number}.log").read_bytes(), self.folder)
        return machine

    def machine(self, address: str) -> Machine:
        return next(machine for machine in self.machines if machine.address == address)

    def cut(self, machine: Machine) -> None:
        """Pull the cable: packets are lost, nobody is told."""
        _ip(f"link set {machine.link} down")

    def mend(self, machine: Machine) -> None:
        _ip(f"link set {machine.link} up")

    def kill(self, machine: Machine) -> None:
        """Switch it off."""
        _end(machine.process, machine.namespace)

    def wait(self, count: int) -> None:
        """Wait until Ray knows so many machines. The caller is connected."""
        _wait_until(lambda: sum(node["Alive"] for node in ray.nodes()) > count, self.folder)

    def _run(self, command: Sequence[str], log: str) -> subprocess.Popen[bytes]:
        environment = {
            **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            "RAY_AUTH_MODE": "disabled",
        }
        with (self.folder / log).open("wb") as file:
            process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=file, stderr=file, start_new_session=True
            )
        self._processes.append(process)
        return process


def _ray_start(*arguments: str) -> list[str]:
    return [
        sys.executable, patient.__file__, "start", *arguments, "--block", "--disable-usage-stats",
        f"--object-store-memory={STORE_BYTES}", "--min-worker-port=0", "--max-worker-port=0",
        *patient.port_options(),
    ]  # fmt: skip


def _end(process: subprocess.Popen[bytes], namespace: str | None = None) -> None:
    """Kill a node's processes, once: those of its session and those that live in its namespace."""
    if process.returncode is not None:  # its number may be another's by now
        return
    pids = []
    if namespace is not None:
        listed = subprocess.run(["ip", "netns", "pids", namespace], check=False, capture_output=True, text=True)
        pids = [int(pid) for pid in listed.stdout.split()]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def network(nodes: int = 3, *, cpus: int = 1) -> Iterator[Network]:
    """Start a head and so many nodes; processes, namespaces and bridge are gone after the block, whatever happens."""
    nth, number = next(_NETWORKS), os.getpid() % 10_000
    name, subnet = f"sm{number}x{nth}", f"10.77.{(number + nth) % 250}"
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryDirectory(prefix="smalti-nodes-") as folder:
        found = Network(name, f"{subnet}.1:{_free_port()}", subnet, Path(folder))
        try:
            _ip(f"link add {name} type bridge")
            _ip(f"addr add {subnet}.1/24 dev {name}")
            _ip(f"link set {name} up")
            host, _, port = found.address.partition(":")
            found._run(
                _ray_start(
                    "--head", f"--node-ip-address={host}", f"--port={port}", "--num-cpus=0",
                    "--include-dashboard=false",
                ),
                "head.log",
            )  # fmt: skip
            _wait_until(lambda: b"Ray runtime started" in (found.folder / "head.log").read_bytes(), found.folder)
            for _ in range(nodes):
                found.add(cpus=cpus)
            yield found
        finally:
            ray.shutdown()
            for machine in found.machines:
                _end(machine.process, machine.namespace)
            for process in found._processes:
                _end(process)
            for machine in found.machines:
                subprocess.run(["ip", "netns", "del", machine.namespace], check=False)
            subprocess.run(["ip", "link", "del", name], check=False)


def _wait_until(condition: Callable[[], bool], logs: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline, [path.read_text() for path in logs.glob("*.log")]
        time.sleep(0.3)
