"""A real S3 server on loopback, seaweedfs, that a test can kill and start again on the same data."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SERVICES = ("s3", "master", "volume", "filer")
UNUSED = ("-s3.port.iceberg=0", "-s3.port.lance=0")
"""Services that would take fixed ports, so that two servers could not run side by side."""


def weed_binary() -> str | None:
    """Return the server's binary, None where it is not installed."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


@dataclass
class ObjectStore:
    """The server and its data; not running until `start`."""

    folder: Path
    ports: dict[str, int] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    buckets: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        names = [name for service in SERVICES for name in (f"{service}.port", f"{service}.port.grpc")]
        with _free_ports(len(names)) as ports:
            self.ports = dict(zip(names, ports, strict=True))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3.port']}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment; this server takes any key."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self, *buckets: str, seconds: float = 90) -> None:
        """Start the server on its data and wait until it takes writes."""
        binary = weed_binary()
        assert binary is not None
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        options = [f"-{name}={port}" for name, port in self.ports.items()]
        with (self.folder / "weed.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(binary, "server", f"-dir={self.folder / 'data'}", "-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                    *("-master.volumeSizeLimitMB=64", "-volume.max=60", *UNUSED, *options),
                ],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                # From keys in its environment the server would make its only user, and refuse all others.
                env={name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            )
        deadline = time.monotonic() + seconds
        for bucket in {"ready-probe", *buckets} - self.buckets:  # one that is there would be refused
            self._put(bucket, b"", deadline)
            self.buckets.add(bucket)
        for bucket in self.buckets:
            self._put(f"{bucket}/ready", b"1", deadline)

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def bytes_of(self, place: str) -> bytes:
        """Read an object without any of our code."""
        with urllib.request.urlopen(f"{self.endpoint}/{place}", timeout=30) as answer:
            return bytes(answer.read())

    def put(self, place: str, data: bytes) -> None:
        """Write an object without any of our code."""
        self._put(place, data, time.monotonic() + 30)

    def _put(self, place: str, data: bytes, deadline: float) -> None:
        while True:
            if self.process is None or self.process.poll() is not None:
                raise RuntimeError(f"the server ended: see {self.folder / 'weed.log'}")
            request = urllib.request.Request(f"{self.endpoint}/{place}", data=data, method="PUT")
            try:
                with urllib.request.urlopen(request, timeout=10):
                    return
            except urllib.error.HTTPError:
                if time.monotonic() > deadline:
                    raise
            except OSError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.3)


@contextmanager
def running_store(folder: Path, *buckets: str) -> Iterator[ObjectStore]:
    """Run a server with some buckets while the block lasts."""
    store = ObjectStore(folder)
    try:
        store.start(*buckets)
        yield store
    finally:
        store.kill()


@contextmanager
def serving(store: ObjectStore) -> Iterator[None]:
    """Let this process, and those it starts, use the server."""
    before = dict(os.environ)
    os.environ.update(store.environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _free_ports(number: int) -> Iterator[list[int]]:
    probes = [socket.socket() for _ in range(number)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        yield [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
