"""Runs cases in a forked child whose memory and time are limited, and says what became of each.

A reader of hostile input may do one of two things: return, or raise an error of its documented kinds. Anything else is
a crash, and what takes too long or dies is seen from outside.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Case = Callable[[], object]
Verdict = Literal["accepted", "refused", "crash", "hang", "died"]

HARD_LIMIT = 8 * 2**30
"""Bytes of addresses that a child may ask for beyond what it begins with, so that no bomb harms the machine."""


@dataclass(frozen=True)
class Outcome:
    """What a case came to."""

    verdict: Verdict
    message: str
    exit_code: int
    """Of the command line, where it would have ended with this error; of a child that died, minus the signal."""
    seconds: float
    peak_mb: float
    """Resident memory that it took at most, beyond what the process had before."""


def run_isolated(
    cases: Sequence[Case], documented: tuple[type[BaseException], ...], *, seconds: float = 10.0
) -> Iterator[Outcome]:
    """Yield an outcome for each case, in order: one child runs them until a case kills it, then another goes on."""
    done = 0
    while done < len(cases):
        receiving, sending = os.pipe()
        pid = os.fork()
        if pid == 0:
            _child(cases[done:], documented, sending)
        os.close(sending)
        with os.fdopen(receiving, "rb") as pipe:
            for outcome in _received(pipe.fileno(), len(cases) - done, seconds):
                done += 1
                yield outcome
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if done < len(cases) and os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
            done += 1
            name = signal.Signals(os.WTERMSIG(status)).name
            yield Outcome("died", f"the process died of {name}", -os.WTERMSIG(status), 0.0, 0.0)


def _received(descriptor: int, count: int, seconds: float) -> Iterator[Outcome]:
    """The outcomes that a child reports; ends when it is dead, and with a hang when it takes too long."""
    text = b""
    for _ in range(count):
        while b"\n" not in text:
            if not select.select([descriptor], [], [], seconds)[0]:
                yield Outcome("hang", f"no answer within {seconds:g} s", -signal.SIGKILL, seconds, 0.0)
                return
            more = os.read(descriptor, 2**16)
            if not more:
                return
            text += more
        line, _, text = text.partition(b"\n")
        yield Outcome(**json.loads(line))


def _child(cases: Sequence[Case], documented: tuple[type[BaseException], ...], sending: int) -> None:
    try:
        faulthandler.disable()
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)  # decoders talk
        limit = _status("VmSize") + HARD_LIMIT
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for case in cases:
            os.write(sending, json.dumps(asdict(_outcome(case, documented))).encode() + b"\n")
    finally:
        os._exit(0)


def _outcome(case: Case, documented: tuple[type[BaseException], ...]) -> Outcome:
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest memory so far
    before, started = _status("VmRSS"), time.perf_counter()
    verdict: Verdict
    try:
        message, verdict, code = str(case())[:4000], "accepted", 0
    except documented as error:
        message, verdict, code = f"{type(error).__name__}: {error}"[:4000], "refused", getattr(error, "exit_code", 1)
    except BaseException as error:
        message, verdict, code = f"{type(error).__name__}: {error} at {_place(error)}"[:600], "crash", 1
    seconds, peak = time.perf_counter() - started, _status("VmHWM") - before
    return Outcome(verdict, message.encode("utf-8", "backslashreplace").decode(), code, seconds, peak / 1e6)


def _place(error: BaseException) -> str:
    trace: Any = error.__traceback__
    places = []
    while trace is not None:
        code = trace.tb_frame.f_code
        if "/pipeline/" in code.co_filename or "/stages/" in code.co_filename:
            places.append(f"{Path(code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " > ".join(places[-3:])


def _status(field: str) -> int:
    """A number of bytes from what the kernel says of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)
