"""What a person sees while it runs and when it ends: progress bars or plain lines, and the closing summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.errors import visible
from pipeline.redaction import redacted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

PLAIN_SECONDS = 20.0
"""Time between lines of progress where the output is not a terminal."""


@dataclass
class Screen:
    """The person's view of a run."""

    console: Console
    _bars: Progress | None = None
    _task: TaskID | None = None
    _stage: str = ""
    _started: float = 0.0
    _first_done: int | None = None
    _last_line: float = field(default=0.0)

    @classmethod
    def open(cls) -> Screen:
        """Return a screen on standard output."""
        from rich.console import Console

        width = None if sys.stdout.isatty() else 160
        return cls(Console(width=width, highlight=False, soft_wrap=not sys.stdout.isatty()))

    def line(self, text: str, style: str = "") -> None:
        """Print a line above any progress bar."""
        self.console.print(visible(redacted(text)), style=style, markup=False)

    def begin(self, stage: str) -> None:
        """Announce that a stage runs."""
        self._stage, self._started, self._first_done, self._last_line = stage, time.monotonic(), None, 0.0
        if self.console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bars = Progress(
                TextColumn("{task.description:>10}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=self.console,
                transient=True,
            )
            self._task = self._bars.add_task(stage, total=None, numbers="starting")
            self._bars.start()
        else:
            self.line(f"{stage}: starting")

    def progress(self, done: int, total: int, numbers: Mapping[str, float]) -> None:
        """Show how far the stage is."""
        now = time.monotonic()
        if self._first_done is None:
            self._first_done, self._started = done, now
        shown = "  ".join(f"{name} {_short(value)}" for name, value in numbers.items())
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, total=total, numbers=shown)
        elif now - self._last_line >= PLAIN_SECONDS or done == total:
            self._last_line = now
            left = ""
            if done > self._first_done:
                seconds = (total - done) * (now - self._started) / (done - self._first_done)
                left = f", {duration(seconds)} left" if done < total else ""
            self.line(f"{self._stage}: {done}/{total}{left}  {shown}".rstrip())

    def end(self) -> None:
        """Take the progress bar away."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = self._task = None

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(visible(title)), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold", justify="right" if column == "time" else "left")
        for row in rows:
            table.add_row(*(Text(visible(redacted(cell))) for cell in row))  # a text could hold rich's own markup
        self.console.print(table, soft_wrap=False)


def metrics_text(metrics: Mapping[str, float | int | str], most: int = 4) -> str:
    """Return the first few metrics as short text; a stage returns its most telling ones first."""
    return "  ".join(
        f"{name} {_short(value) if isinstance(value, int | float) else value}"
        for name, value in list(metrics.items())[:most]
    )


def duration(seconds: float) -> str:
    """Return seconds as a person reads them: 8 s, 2:05 min, 1:10 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if seconds >= 10 else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def _short(value: float) -> str:
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
