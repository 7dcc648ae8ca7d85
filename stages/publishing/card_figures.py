"""The figures of a model card: those of several kinds of pictures side by side, the others one below the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.metrics.report.numbers import number
from stages.metrics.report.tables import COMPARISONS, SUBJECTS, Figures
from stages.publishing.markdown import plain

LEADING = "kid"
"""Among COMPARISONS: it is measured of all SUBJECTS that there are."""


@dataclass(frozen=True)
class Compared:
    """A table of figures by kind of pictures, and what its rows and columns mean."""

    columns: list[str]
    rows: list[tuple[str, str, list[str]]]
    """Name, which way is better, a cell for each column."""
    of_columns: list[tuple[str, str, int]]
    """Name, what its figures are computed on, how many pictures."""
    of_rows: list[tuple[str, str]]

    @classmethod
    def of(cls, figures: Figures) -> Compared:
        """Only of what was measured."""
        endings = [ending for ending in SUBJECTS if f"{LEADING}_{ending}" in figures]
        found = {kind: [figures.get(f"{kind}_{ending}") for ending in endings] for kind in COMPARISONS}
        found = {kind: cells for kind, cells in found.items() if any(cells)}
        leading = [figures[f"{LEADING}_{ending}"] for ending in endings]
        any_of = {kind: next(cell for cell in cells if cell) for kind, cells in found.items()}
        return cls(
            [SUBJECTS[ending] for ending in endings],
            [(kind, any_of[kind]["better"], [_cell(cell) for cell in cells]) for kind, cells in found.items()],
            [
                (SUBJECTS[ending], plain(figure["computed_on"]), figure["samples"])
                for ending, figure in zip(endings, leading, strict=True)
            ],
            [(kind, plain(figure["what"])) for kind, figure in any_of.items()],
        )


def listed(figures: Figures) -> list[dict[str, Any]]:
    """Name, value, which way is better, of how many, what and computed on what: of all that `Compared` leaves out."""
    shown = {f"{kind}_{ending}" for kind in COMPARISONS for ending in SUBJECTS}
    return [
        {
            "name": name,
            "value": _cell(figure),
            "better": figure["better"],
            "of": figure["samples"],
            "what": plain(figure["what"]),
            "on": plain(figure["computed_on"]),
        }
        for name, figure in sorted(figures.items())
        if name not in shown
    ]


def _cell(figure: Mapping[str, Any] | None) -> str:
    """Value and 95% interval."""
    if figure is None:
        return ""
    value, interval = number(figure["value"]), figure.get("interval")
    return f"{value} ({' to '.join(number(end) for end in interval)})" if interval else value
