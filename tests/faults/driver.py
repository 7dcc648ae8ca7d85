"""Runs of the pipeline as forked processes: torch is imported once, so that a thousand runs cost little but their work.

What a fork runs is what `python run_pipeline.py` runs. Call `preload` first, in a process without threads.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

RUNNING = 0.01
"""Seconds between looks at a running process."""


@dataclass
class Driver:
    """A forked process and what it printed."""

    pid: int
    output: Path
    code: int | None = None
    """Its exit code, minus the signal that ended it; None while it runs."""

    _said: str | None = None

    @property
    def text(self) -> str:
        """What it printed so far, or before it ended: a later process may use the same file."""
        return self.output.read_text(errors="replace") if self._said is None else self._said

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code, self._said = os.waitstatus_to_exitcode(status), self.text
        return self.code

    def wait(self, seconds: float = 600) -> int | None:
        """Return the exit code, None where it still runs after so many seconds."""
        until = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < until:
            time.sleep(RUNNING)
        return self.code

    def send(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it without warning."""
        self.send(signal.SIGKILL)
        self.wait()


def preload() -> None:
    """Import what stages import when they run."""
    import torch

    import stages.encoding.shard_encoder
    import stages.metrics.judge
    import stages.metrics.measure
    import stages.metrics.report
    import stages.sampling.unit
    import stages.training.prior
    import stages.training.tokenizer  # noqa: F401

    torch.set_num_threads(1)


def fork(work: Callable[[], int], output: Path) -> Driver:
    """Run `work` in a forked process that ends with the code it returns."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Driver(pid, output)
    code = 70
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = sys.stderr = os.fdopen(descriptor, "w", buffering=1)
        code = work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command_line(arguments: Sequence[str]) -> int:
    """What `python run_pipeline.py ARGUMENTS` does."""
    import typer

    import run_pipeline

    sys.argv = ["run_pipeline.py", *arguments]
    typer.run(run_pipeline.main)
    return 0


def start(arguments: Sequence[str], output: Path, before: Callable[[], object] = lambda: None) -> Driver:
    """Fork a run of the command line; `before` is called in its process first."""

    def work() -> int:
        before()
        return command_line(arguments)

    return fork(work, output)
