"""Jobs that a schedule submits to a cluster: one a slot, whoever submits it and however often."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pipeline.errors import ConfigError, Interrupted, StageError, shown
from pipeline.signals import StopRequest

SLOTS = {"day": "%Y%m%d", "hour": "%Y%m%d-%H00", "minute": "%Y%m%d-%H%M"}
"""Slots by the clock, and how their ids are written."""
STOPPED_CODE = 143
"""Exit code of a job that was stopped: the same as that of a terminated run."""
POLL_SECONDS = 2.0
"""How often a running job is looked at."""
LOG_BYTES_PER_SECOND = 1e6
"""The log comes whole each time: a long one is asked for less often, so that this rate is not exceeded."""

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_RETRY = re.compile(r"-retry\d+$")


@dataclass(frozen=True)
class Job:
    """A submitted job as the cluster knows it."""

    id: str
    status: str
    """Ray's word: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    entrypoint: str
    """The shell command it runs."""
    started: float
    """When it was submitted, in seconds of Unix time."""
    code: int | None = None
    """How its process ended: its exit code, or minus the signal that killed it. None: not yet, or nobody knows."""
    message: str = ""
    """What the cluster says of it."""

    @property
    def exit_code(self) -> int | None:
        """The exit code to pass on; None while it waits or runs."""
        if self.status in ("PENDING", "RUNNING"):
            return None
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return STOPPED_CODE
        if self.code is None:  # it never started, or was lost with its node
            return 1
        return self.code if self.code >= 0 else 128 - self.code

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
        if self.exit_code is None:
            return f"{self.id} is {self.status} since {since}"
        # Of a process that ended with a code, the message only repeats it and its log.
        reason = f": {self.message.strip()}" if self.status == "FAILED" and self.code is None and self.message else ""
        return f"{self.id} of {since} {self.status}, exit code {self.exit_code}{reason}"


class Jobs(Protocol):
    """The jobs of a cluster. Every question raises ClusterUnreachable when it gets no answer in a bounded time."""

    def find(self, job_id: str) -> Job | None:
        """Return the job of this id; None where the cluster knows none."""

    def submit(self, job_id: str, entrypoint: str) -> bool:
        """Submit a job; return False, and change nothing, where one of this id exists."""

    def end(self, job_id: str) -> None:
        """Ask a job to leave at its next safe point (SIGTERM)."""

    def log(self, job_id: str) -> str | None:
        """Return all that a job has written; None where its log cannot be read now."""


def submission_id(name: str, slot: str, now: float | None = None) -> str:
    """Return the id of the job for a slot: `day`, `hour` or `minute` of this machine's clock, or the slot's own name.

    Raises ConfigError naming what cannot be part of an id.
    """
    if slot in SLOTS:
        slot = time.strftime(SLOTS[slot], time.localtime(now))
    for option, value in (("--name", name), ("--slot", slot)):
        if not _PART.fullmatch(value) or _RETRY.search(value):
            raise ConfigError(
                f"{option} {shown(value)}: up to 100 letters, digits, dots, dashes and underscores, beginning with a "
                "letter or digit and not ending in -retryN, e.g. --name nightly --slot 20250131"
            )
    return f"{name}-{slot}"


def submit_once(jobs: Jobs, slot_id: str, entrypoint: str, *, retry: bool = False) -> tuple[Job, bool]:
    """Return the slot's job and whether this call submitted it.

    A slot that has a job keeps it. With `retry`, one that failed or was stopped is followed by `ID-retry2`, and so on.
    Raises ConfigError where the slot's job runs another command.
    """
    last, attempts = None, 0
    while (job := jobs.find(_attempt(slot_id, attempts + 1))) is not None:
        last, attempts = job, attempts + 1
    submitted = False
    if last is None or (retry and last.exit_code):
        wanted = _attempt(slot_id, attempts + 1)
        submitted = jobs.submit(wanted, entrypoint)
        last = jobs.find(wanted)
        if last is None:
            raise _forgotten(wanted)
    if last.entrypoint != entrypoint:
        raise ConfigError(
            f"{last.id} runs another command: {last.entrypoint}\nthis one would be: {entrypoint}\n"
            "one slot has one command: choose another --name or --slot"
        )
    return last, submitted


def follow(
    jobs: Jobs,
    job: Job,
    write: Callable[[str], None],
    stop: StopRequest,
    *,
    stop_after: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Job:
    """Hand the job's log to `write` as it grows, until the job has ended; return it as it is then.

    `stop_after` seconds after its submission it is asked to leave. Raises Interrupted when we are asked ourselves: the
    job goes on.
    """
    written, quiet_until, asked = 0, 0.0, False
    while True:
        now = jobs.find(job.id)
        if now is None:
            raise _forgotten(job.id)
        if now.exit_code is not None or time.monotonic() >= quiet_until:
            text = jobs.log(job.id) or ""
            quiet_until = time.monotonic() + len(text) / LOG_BYTES_PER_SECOND
            if text[written:]:
                write(text[written:])
                written = len(text)
        if now.exit_code is not None:
            return now
        if stop:
            raise Interrupted(stop.signal_number or 2)
        if stop_after is not None and not asked and time.time() - now.started > stop_after:
            asked = True
            write(f"{job.id}: asked to leave after {stop_after:.0f} s (--stop-after)\n")
            jobs.end(job.id)
        sleep(POLL_SECONDS)


def _attempt(slot_id: str, number: int) -> str:
    return slot_id if number == 1 else f"{slot_id}-retry{number}"


def _forgotten(job_id: str) -> StageError:
    return StageError(
        f"the cluster no longer knows {job_id}: its head was started anew, and the job ended with the old one. Submit "
        "it again; what was finished is kept in the workdir"
    )
