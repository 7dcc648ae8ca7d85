"""What every training loop does around its steps: resume, record, checkpoint, report, leave; ranks stay agreed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipeline.errors import Interrupted
from pipeline.runtime import Rank, Reporter
from stages.training.checkpoints import Checkpoint, Checkpoints
from stages.training.fabric import Fabric, broadcast_flag, broadcast_text
from stages.training.states import State


@dataclass
class Session:
    """One gang's training between two deaths. A loop looks like this:

        with open_fabric(rank) as fabric:
            session = Session(fabric, rank, reporter, Checkpoints(folder, rank.attempt), steps=..., ...)
            state = build(...)
            if checkpoint := session.resume():
                state.load(checkpoint.state)
            while state.step < steps:
                reseed(seed, state.step, rank.rank)
                ... one update; state.step += 1 ...
                session.record(state.step, {"train/loss": ...})
                session.after_step(state.step, state.dump)

    The order in `after_step` is what makes a replay invisible: the checkpoint commits, then the driver gets the rows
    that it holds, then the loop leaves if the user asked to.
    """

    fabric: Fabric
    rank: Rank
    reporter: Reporter
    checkpoints: Checkpoints
    steps: int
    """Where training ends unless it ends earlier."""
    checkpoint_every: int
    """Steps between checkpoints."""
    history: list[dict[str, float]] = field(default_factory=list)
    """All rows so far, each with its `step`; kept on rank 0 alone."""
    last_good: str = "none yet"
    """Where the last committed checkpoint lies, for the message of an error that ends training. On rank 0."""
    _published: int = 0

    def resume(self, accept: Callable[[Checkpoint], bool] = lambda checkpoint: True) -> Checkpoint | None:
        """The checkpoint to go on from, the same one on every rank; None to start from the beginning. Collective.

        One beyond `steps`, or that `accept` refuses, was trained for longer than the config now asks for and would
        give another result than training from the beginning: it is passed over, with a warning.
        """
        chosen = self._choose(accept) if self.rank.rank == 0 else None
        name = broadcast_text(self.fabric, chosen.name if chosen else "")
        if not name:
            return None
        if chosen is None:
            return self.checkpoints.open(name)
        self.history = chosen.history
        self.last_good = self.checkpoints.place(chosen.name)
        self.publish()
        return chosen

    def record(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add a row to the history; the driver gets it once a checkpoint holds it."""
        if self.rank.rank == 0:
            self.history.append({"step": step, **numbers})

    def progress(self, step: int, numbers: Mapping[str, float]) -> None:
        """Show how far it is."""
        if self.rank.rank == 0:
            self.reporter.progress(step, self.steps, numbers)

    def after_step(self, step: int, state: Callable[[], State], *, finished: bool = False) -> None:
        """Checkpoint if one is due, training has `finished`, or the user asked to leave. Collective.

        `state` is called on rank 0 alone, and only if there is something to save.

        Raises:
            Interrupted: the user asked to leave; a checkpoint of this step was committed.
        """
        leaving = not finished and self._asked_to_leave(step)
        if finished or leaving or step % self.checkpoint_every == 0:
            self.commit(step, state)
        if leaving:
            raise Interrupted

    def commit(self, step: int, state: Callable[[], State]) -> None:
        """Checkpoint, then publish the rows that it holds. Not collective: the other ranks go on to their next sum."""
        if self.rank.rank == 0:
            self.last_good = self.checkpoints.place(self.checkpoints.save(step, state(), self.history))
            self.publish()

    def _choose(self, accept: Callable[[Checkpoint], bool]) -> Checkpoint | None:
        passed_over: list[int] = []

        def usable(checkpoint: Checkpoint) -> bool:
            usable = checkpoint.step <= self.steps and accept(checkpoint)
            if not usable:
                passed_over.append(checkpoint.step)
            return usable

        self.checkpoints.claim()
        checkpoint = self.checkpoints.latest(usable)
        for warning in checkpoint.warnings if checkpoint else ():
            self.reporter.warn(warning)
        if passed_over:
            place = f"step {checkpoint.step}" if checkpoint else "the beginning"
            self.reporter.warn(
                f"the checkpoint of step {passed_over[0]} lies beyond what the config now asks for "
                f"({self.steps} steps): training goes on from {place}"
            )
        return checkpoint

    def publish(self) -> None:
        """Send the rows that the driver does not have yet. `after_step` does it when it has committed them."""
        if self._published < len(self.history):
            self.reporter.history(self.history[self._published :])
            self._published = len(self.history)

    def _asked_to_leave(self, step: int) -> bool:
        # On GPUs agreeing makes the host wait for the device; a step there takes milliseconds, so ask now and then.
        if self.fabric.device.type != "cpu" and step % 10:
            return False
        return broadcast_flag(self.fabric, self.rank.rank == 0 and self.reporter.stopping())


class Pace:
    """Measures how fast a loop goes and which share of its time it waits for data. Never part of a result."""

    def __init__(self) -> None:
        self._started = self._mark = time.perf_counter()
        self._waited = self._waited_in_all = 0.0
        self._count = self._count_in_all = 0

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the block as waiting."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - start

    def count(self, units: int) -> None:
        """Add work done (tokens, pictures, over all ranks)."""
        self._count += units

    def lap(self, unit: str) -> dict[str, float]:
        """`UNIT_per_second` and `data_wait_share` since the last lap."""
        now = time.perf_counter()
        seconds = max(now - self._mark, 1e-9)
        rates = {f"{unit}_per_second": self._count / seconds, "data_wait_share": self._waited / seconds}
        self._waited_in_all += self._waited
        self._count_in_all += self._count
        self._mark, self._waited, self._count = now, 0.0, 0
        return rates

    def overall(self, unit: str) -> dict[str, float]:
        """The same since the beginning, and `seconds`: for an artifact's notes."""
        self.lap(unit)
        seconds = max(self._mark - self._started, 1e-9)
        return {
            "seconds": seconds,
            f"{unit}_per_second": self._count_in_all / seconds,
            "data_wait_share": self._waited_in_all / seconds,
        }
