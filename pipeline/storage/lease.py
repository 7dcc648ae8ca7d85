"""Who may write to a remote workdir: an object that names its holder, renewed while the holder lives.

Taken by a conditional PUT (`If-None-Match: *`), renewed and taken over by another (`If-Match` of the entity tag), so
that of two that try one finds out. No clock is compared: a newcomer watches the lease for as long as it lasts, and
takes it over if it was not renewed meanwhile; if the holder was a process of this very machine that is gone, at once.
Where a server ignores conditions, or the protocol has none, the lease is written and read back after a pause.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, StorageError, UserError, WorkdirBusy
from pipeline.storage import remote
from pipeline.storage.remote import Conflict, Facts
from pipeline.storage.retries import patience_of

log = logging.getLogger(__name__)

NAME = "lease.json"
SECONDS = "SMALTI_LEASE_SECONDS"
"""Environment variable: how long a lease lasts unless it is renewed, which happens three times as often. Default: 60.
All who use a workdir must agree on it."""
NO_TAG = "0" * 32
"""An entity tag that no lease has."""

Announce = Callable[[str], None]


@contextlib.contextmanager
def leased(workdir: str, announce: Announce) -> Iterator[None]:
    """Hold a remote workdir alone; no write of this process below it goes on once the lease is lost.

    Raises WorkdirBusy naming host, pid and since when.
    """
    lease = Lease(workdir, announce, lease_seconds(), remote.protocol_of(workdir) in remote.CONDITIONAL)
    lease.acquire()
    renewing = threading.Thread(target=lease.keep, name="lease", daemon=True)
    renewing.start()
    remote.FENCES[workdir] = lease.check
    try:
        yield
    finally:
        del remote.FENCES[workdir]
        lease.release()
        renewing.join(timeout=10)


def lease_seconds() -> float:
    """Return how long a lease lasts. Raises ConfigError where the environment says no number."""
    text = os.environ.get(SECONDS, "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 3600:
        raise ConfigError(f"{SECONDS}={text}: must be a number of seconds from 1 to 3600")
    return seconds


@dataclass
class Lease:
    """One process's claim to a remote workdir."""

    workdir: str
    announce: Announce
    seconds: float
    conditional: bool
    """Whether writes can depend on what is there; set to False once the server has shown that it does not care."""
    _token: str = field(default_factory=lambda: secrets.token_hex(8))
    _since: str = field(default_factory=lambda: datetime.datetime.now().astimezone().isoformat(timespec="seconds"))
    _renewals: int = 0
    _stamp: str = ""
    _renewed: float = 0.0
    _lost: str = ""
    _end: threading.Event = field(default_factory=threading.Event)
    _alone: threading.RLock = field(default_factory=threading.RLock)

    @property
    def url(self) -> str:
        """The object."""
        return f"{self.workdir}/{NAME}"

    def acquire(self) -> None:
        """Take the lease. Raises WorkdirBusy."""
        while True:
            found = remote.facts(self.url)
            try:
                if found is None:
                    self._write(mode="create")
                else:
                    other = self._read()
                    if not (other is None or _is_gone(other)):
                        self._watch(found, other)
                    self._write(IfMatch=_quoted(found))
                    log.warning("the lease of %s, left by %s, is taken over", self.url, _who(other))
                break
            except Conflict:
                continue  # someone else was quicker, or its holder let go of it: look again
        self._prove()

    def keep(self) -> None:
        """Renew the lease until it is released or lost; for a thread of its own."""
        while not self._end.wait(self.seconds / 3):
            with contextlib.suppress(Exception), patience_of(self.seconds):  # `check` tells whoever writes
                self._renew()

    def check(self) -> None:
        """Raise StorageError where the lease is lost, or cannot be shown to be held."""
        with self._alone:
            if not self._lost and time.monotonic() - self._renewed > self.seconds:
                self._renew()
            if self._lost:
                raise StorageError(self._lost)

    def release(self) -> None:
        """Let others in, unless the lease is theirs already. Where that fails, the lease ends by itself."""
        self._end.set()
        if self._alone.acquire(timeout=5):
            with contextlib.suppress(UserError, OSError), patience_of(5):
                if not self._lost and self._is_ours():
                    remote.remove([self.url])
            self._alone.release()

    def _renew(self) -> None:
        with self._alone:
            if self._end.is_set() or self._lost:
                return
            try:
                if not self.conditional and not self._is_ours():
                    raise Conflict(self.url)
                self._write(IfMatch=f'"{self._stamp}"')
            except Conflict:
                self._lost = (
                    f"{self.workdir} was taken over by {_who(self._read())} while this run could not renew its lease: "
                    "nothing more is written; run the same command again when that run is over"
                )
                log.error("%s", self._lost)

    def _write(self, **conditions: str) -> None:
        """Write the lease, under conditions where there are such. Raises Conflict."""
        started = time.monotonic()
        self._renewals += 1
        me = {"host": socket.gethostname(), "pid": os.getpid(), "since": self._since, "token": self._token}
        text = json.dumps({**me, "renewals": self._renewals, "seconds": self.seconds, **_process(os.getpid())})
        try:
            remote.write(self.url, text.encode(), fenced=False, **(conditions if self.conditional else {}))
        except Conflict:
            # The answer to a try before may have been lost, and what is there now be ours all the same.
            if not self._is_ours():
                raise
        found = remote.facts(self.url)
        self._stamp, self._renewed = found.stamp if found else "", started

    def _prove(self) -> None:
        """See whether the server honours conditions: it must refuse what is wrong. If not, see who wrote last."""
        wrong = ({"mode": "create"}, {"IfMatch": f'"{NO_TAG}"'})
        self.conditional = self.conditional and all(self._refuses(conditions) for conditions in wrong)
        if self.conditional:
            return
        pause = self.seconds / 10
        self.announce(
            f"{self.workdir}: this store has no conditional writes: two runs that start within {pause:.0f} s of each "
            "other there are told apart by who wrote last, which is not proof against slow networks"
        )
        time.sleep(pause)
        if not self._is_ours():
            raise WorkdirBusy(self._busy(self._read()))

    def _refuses(self, conditions: dict[str, str]) -> bool:
        try:
            remote.write(self.url, remote.read(self.url), fenced=False, **conditions)
        except Conflict:
            return True
        except StorageError as error:  # the server knows no such condition
            log.warning("%s", error)
        return False

    def _watch(self, found: Facts, other: dict[str, Any]) -> None:
        """Wait for as long as a lease lasts. Raises WorkdirBusy as soon as the holder renews it."""
        self.announce(
            f"{self.workdir} is leased by {_who(other)}: watching for {self.seconds:.0f} s whether that run still lives"
        )
        started = time.monotonic()
        while time.monotonic() - started < self.seconds:
            time.sleep(min(1.0, self.seconds / 10))
            now = remote.facts(self.url)
            if now is None:
                raise Conflict(self.url)
            if now != found:
                raise WorkdirBusy(self._busy(self._read()))

    def _is_ours(self) -> bool:
        held = self._read()
        return held is not None and held["token"] == self._token

    def _read(self) -> dict[str, Any] | None:
        try:
            lease = json.loads(remote.read(self.url))
            return lease if isinstance(lease, dict) and "token" in lease else None
        except (FileNotFoundError, ValueError):
            return None

    def _busy(self, other: dict[str, Any] | None) -> str:
        return f"workdir {self.workdir} is in use by {_who(other)}: wait for it, stop it, or choose another --workdir"


def _who(lease: dict[str, Any] | None) -> str:
    if lease is None:
        return "another run"
    return f"process {lease.get('pid')} on {lease.get('host')} since {lease.get('since')}"


def _quoted(found: Facts) -> str:
    return f'"{found.stamp}"'


def _process(pid: int) -> dict[str, str]:
    """Return what tells a process of this machine from all others, as far as the system says."""
    with contextlib.suppress(OSError, IndexError):
        state, *more = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        started = "" if state in "ZX" else more[18]  # a zombie does nothing any more
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"boot": boot, "namespace": str(Path("/proc/self/ns/pid").readlink()), "started": started}
    return {}


def _is_gone(lease: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    here, there = _process(os.getpid()), {key: lease.get(key) for key in ("boot", "namespace")}
    if not here or there != {key: here[key] for key in there}:
        return False
    now = _process(int(lease.get("pid", 0)))
    return now.get("started") != lease.get("started")
