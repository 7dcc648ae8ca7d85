"""How a run ended, as it is told: to programs, in JSON."""

from __future__ import annotations

import math
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import Interrupted, UserError
from pipeline.redaction import redacted

if TYPE_CHECKING:
    from pipeline.runner import Outcome

Status = Literal["finished", "failed", "interrupted", "nothing_new"]
FORMAT = 1
"""Of the payload."""


@dataclass(frozen=True, kw_only=True)
class StageTold:
    """What is told of a stage."""

    name: str
    ran: bool
    seconds: float | None = None
    """Of the stage, by the clock; None where it did not run."""
    units: int = 0
    units_reused: int = 0
    metrics: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Told:
    """How a run ended: the payload, in the order of its keys."""

    run: str
    """Name of the experiment."""
    workdir: str
    status: Status
    exit_code: int
    error: str | None = None
    """The message that ended the run."""
    seconds: float
    stages: tuple[StageTold, ...] = ()
    verdict: str | None = None
    """Of the version that this run judged: champion or challenger."""
    reasons: tuple[str, ...] = ()
    champion: int | None = None
    """The version in use after the run."""
    figures: Mapping[str, float] = field(default_factory=dict)
    report: str | None = None
    """Where the report lies."""
    resume: str
    """The command that goes on."""

    def payload(self) -> dict[str, Any]:
        """Return what is sent: all of these, redacted, after the payload's `format` and an `id` that is the same in all
        attempts, and before `host` and `time`."""
        told = {**asdict(self), "host": socket.gethostname(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        clean: dict[str, Any] = _plain({"format": FORMAT, "id": uuid.uuid4().hex, **told})
        return clean


@dataclass
class Ending:
    """What a run gathers for the message about its end."""

    outcomes: Sequence[Outcome] = ()
    """Of the stages so far; a list that grows will do."""
    verdict: str | None = None
    reasons: Sequence[str] = ()
    champion: int | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    report: str | None = None

    def told(self, error: BaseException | None, *, run: str, workdir: str, resume: str, seconds: float) -> Told:
        """Return the message; `error` is what ended the run, None where it came to its end."""
        stages = tuple(_stage_told(outcome) for outcome in self.outcomes)
        status, exit_code = _status(error, any(stage.ran for stage in stages))
        return Told(
            run=run,
            workdir=workdir,
            status=status,
            exit_code=exit_code,
            error=None if error is None else str(error) or type(error).__name__,
            seconds=round(seconds, 2),
            stages=stages,
            verdict=self.verdict,
            reasons=tuple(self.reasons),
            champion=self.champion,
            figures=self.figures,
            report=self.report,
            resume=resume,
        )


def _stage_told(outcome: Outcome) -> StageTold:
    artifact = outcome.artifact
    reused = int(artifact.notes.get("units_reused", 0)) if outcome.ran else len(artifact.units)
    return StageTold(
        name=outcome.stage.name,
        ran=outcome.ran,
        seconds=round(outcome.seconds, 2) if outcome.ran else None,
        units=len(artifact.units),
        units_reused=reused,
        metrics=artifact.metrics,
    )


def _status(error: BaseException | None, anything_ran: bool) -> tuple[Status, int]:
    """What became of a run, and its exit code."""
    if error is None:
        return ("finished" if anything_ran else "nothing_new"), 0
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    exit_code = error.exit_code if isinstance(error, UserError) else 1
    return ("interrupted" if isinstance(error, Interrupted) else "failed"), exit_code


def _plain(value: Any) -> Any:
    """A tree as JSON has it, without secrets; what is no finite number becomes null."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(below) for below in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
