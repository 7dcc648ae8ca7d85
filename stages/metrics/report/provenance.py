"""What the stages before the report cost, where and when each was made, from its manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact

DEVICE_NAMES = {"cpu": "CPU", "gpu": "GPU"}
RATE = "_per_second"


def cost_of(artifact: Artifact) -> dict[str, Any]:
    """What the attempt that finished a stage took; None where its manifest does not say.

    `seconds` by the clock; `device_seconds`, seconds times processes (on CPUs) or GPUs that worked side by side;
    `data_wait_share`, the part of training in which it waited for data; `rates`, units of work per second.
    """
    notes = artifact.notes
    return {
        "stage": artifact.stage,
        "seconds": notes.get("seconds"),
        "device_seconds": notes.get("device_seconds"),
        "data_wait_share": notes.get("data_wait_share"),
        "rates": {name.removesuffix(RATE): value for name, value in notes.items() if name.endswith(RATE)},
        "units": len(artifact.units),
        "units_reused": notes.get("units_reused") or 0,
        "attempt": notes.get("attempt"),
        "finished": notes.get("finished"),
        "machine": notes.get("machine"),
    }


def total_cost(costs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds and device-seconds of all stages; a stage that does not say adds nothing."""
    total: dict[str, Any] = {"seconds": 0.0, "device_seconds": {}}
    for cost in costs:
        total["seconds"] += cost["seconds"] or 0.0
        for kind, seconds in (cost["device_seconds"] or {}).items():
            total["device_seconds"][kind] = total["device_seconds"].get(kind, 0.0) + seconds
    return total
