"""One number of the report: its value, how sure it is, and what it was computed on."""

from __future__ import annotations

from typing import Any, Literal

from stages.metrics.weighting import Estimate

Figure = dict[str, Any]
Better = Literal["higher", "lower"]


def figure(
    value: float | Estimate, what: str, computed_on: str, better: Better, *, samples: int, against: int | None = None
) -> Figure:
    """A number for report.json: of so many `samples` (pictures or tokens), `against` so many others."""
    described: Figure = {"what": what, "computed_on": computed_on, "better": better, "samples": samples}
    if against is not None:
        described["against"] = against
    if isinstance(value, Estimate):
        return {**described, "value": value.value, "interval": list(value.interval), "interval_by": value.by}
    return {**described, "value": value}
