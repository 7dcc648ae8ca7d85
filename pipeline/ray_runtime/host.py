"""The worker process: makes units and runs ranks, and answers the driver's questions meanwhile."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray

from pipeline.errors import UserError
from pipeline.manifest import UnitRecord
from pipeline.runtime import Loop, Rank, available_cores
from pipeline.units import MakeWorker, Unit, UnitStore, Worker

Message = tuple[str, tuple[Any, ...]]
"""A method of the Reporter, and its arguments."""

_SIOCGIFADDR = 0x8915


class Pulse(NamedTuple):
    """A sign of life."""

    messages: list[Message]
    beats: int
    """How often the running loop has said or asked something."""
    quiet: float
    """Seconds since it did so last."""


class Place(NamedTuple):
    """Where a worker process runs."""

    address: str
    pid: int
    cores: int


@dataclass
class _HostReporter:
    """The reporter of a rank: keeps messages until the driver polls for them."""

    messages: list[Message] = field(default_factory=list)
    latest_progress: tuple[Any, ...] | None = None
    stop: bool = False
    beats: int = 0
    last_beat: float = field(default_factory=time.monotonic)

    def progress(self, done: int, total: int, numbers: Mapping[str, float]) -> None:
        self._beat()
        self.latest_progress = (done, total, dict(numbers))

    def history(self, rows: Sequence[Mapping[str, float]]) -> None:
        self._say("history", [dict(row) for row in rows])

    def picture(self, name: str, data: bytes, step: int) -> None:
        self._say("picture", name, data, step)

    def warn(self, message: str) -> None:
        self._say("warn", message)

    def stopping(self) -> bool:
        self._beat()
        return self.stop

    def take(self) -> list[Message]:
        """Return and forget what was said since the last time."""
        taken, self.messages = self.messages, []
        progress, self.latest_progress = self.latest_progress, None
        return taken if progress is None else [*taken, ("progress", progress)]

    def _say(self, name: str, *arguments: Any) -> None:
        self._beat()
        self.messages.append((name, arguments))

    def _beat(self) -> None:
        self.beats, self.last_beat = self.beats + 1, time.monotonic()


class Host:
    """A worker process. Units and ranks run on its one working thread; a second thread answers polls."""

    def __init__(self) -> None:
        self._worker: tuple[str, Worker] | None = None
        self._reporter = _HostReporter()

    def where(self) -> Place:
        """Return where this process runs, and how many cores it may use."""
        return Place(ray.util.get_node_ip_address(), os.getpid(), available_cores())

    def free_port(self) -> int:
        """Return a port that is free on this node."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return int(probe.getsockname()[1])

    def make_unit(
        self, store: UnitStore, job: str, make_worker: MakeWorker, unit: Unit, device: str
    ) -> UnitRecord | UserError:
        """Make and commit one unit; the worker is built once for a `job`."""
        try:
            if self._worker is None or self._worker[0] != job:
                self._worker = None
                self._worker = (job, make_worker(device))
            return store.make(unit, self._worker[1])
        except UserError as error:
            return error

    def run_rank(self, loop: Loop, rank: Rank) -> tuple[Any, UserError | None]:
        """Run one rank of a gang."""
        self._worker = None
        self._reporter = _HostReporter()
        if rank.world > rank.local_world:
            _choose_interface(ray.util.get_node_ip_address())
        try:
            return loop(rank, self._reporter), None
        except UserError as error:
            return None, error

    @ray.method(concurrency_group="poll")  # type: ignore[untyped-decorator]
    def poll(self, stop: bool) -> Pulse:
        """Return what the rank said, and tell it whether to stop."""
        reporter = self._reporter
        reporter.stop = stop
        return Pulse(reporter.take(), reporter.beats, time.monotonic() - reporter.last_beat)


def _choose_interface(address: str) -> None:
    """Let the ranks talk over the interface by which Ray knows this node, unless the user chose one.

    Left alone, gloo looks its own host name up, which many systems answer with a loopback address.
    """
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            try:
                answer = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # it has no IPv4 address
        if socket.inet_ntoa(answer[20:24]) == address:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
            return
