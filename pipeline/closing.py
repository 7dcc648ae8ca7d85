"""The last lines of a run: what was done and where it lies, or what went wrong and how to go on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import Interrupted
from pipeline.progress import Screen, duration, metrics_text
from pipeline.runner import Outcome, Runner
from pipeline.storage import Folder
from pipeline.tracking import MlflowTracker

REPORT = "report.html"


def summary(runner: Runner, verdict: str, seconds: float | None = None) -> None:
    """Print the closing table and how to open what was made."""
    screen = runner.screen
    assert screen is not None
    rows = []
    for outcome in runner.outcomes:
        reused = outcome.artifact.notes.get("units_reused", 0) if outcome.ran else 0
        did = f"ran, {reused} of {len(outcome.artifact.units)} units reused" if reused else "ran"
        rows.append(
            (
                outcome.stage.name,
                did if outcome.ran else ("kept" if outcome.reason.startswith("kept") else "skipped"),
                duration(outcome.seconds) if outcome.ran else "",
                metrics_text(outcome.artifact.metrics),
                _shown_path(outcome.artifact.folder),
            )
        )
    title = f"done in {duration(seconds)}" if seconds is not None else "nothing to do: all finished, nothing changed"
    screen.table(title, ("stage", "", "time", "", "where"), rows)
    if verdict:
        screen.line(f"verdict  {verdict}")
    if (report := report_of(runner.outcomes)) is not None:
        screen.line(f"report   {report}")
    if isinstance(runner.tracker, MlflowTracker):
        screen.line(f"tracker  mlflow ui --backend-store-uri {runner.tracker.uri}")


def report_of(outcomes: Sequence[Outcome]) -> str | None:
    """Where the report lies of the last stage that wrote one: a publication's holds the evaluation's."""
    homes = [outcome.artifact.folder for outcome in outcomes if not outcome.stage.beside]
    return next((f"{_shown_path(home)}/{REPORT}" for home in reversed(homes) if home.exists(REPORT)), None)


def _shown_path(folder: Folder) -> str:
    if not folder.is_local:
        return str(folder)
    relative = os.path.relpath(folder.path)
    return str(folder) if relative.startswith("..") else relative


def explain(screen: Screen, command: str, error: BaseException, log_path: Path | None) -> None:
    """Print what ended the run and the command that goes on, as its last lines."""
    screen.end()
    screen.line(f"{'' if isinstance(error, Interrupted) else 'error: '}{error}", style="bold red")
    if log_path is not None:
        screen.line(f"log      {log_path}")
        screen.line(f"resume   {command}")
