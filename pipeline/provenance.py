"""Where, when and with what something was made: for people, never part of a digest."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.runtime import GangStart

REPORTED_PACKAGES = ("torch", "lightning-fabric", "ray", "mlflow", "webdataset", "pyarrow", "numpy", "pillow")


def provenance(
    seconds: float,
    device_seconds: Mapping[str, float],
    attempt: int,
    run_id: str | None,
    gang_starts: Sequence[GangStart] = (),
) -> dict[str, Any]:
    """Return where, when and with what an artifact was made: for people, never part of a digest.

    `seconds`, `device_seconds` (by kind of device) and `gang_starts` are those of the attempt that finished.
    """
    gang = {"gang": [{**asdict(start), "seconds": round(start.seconds, 2)} for start in gang_starts]}
    return {
        **(gang if gang_starts else {}),
        "seconds": round(seconds, 2),
        "device_seconds": {kind: round(spent, 2) for kind, spent in device_seconds.items()},
        "attempt": attempt,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "run_id": run_id,
        "code": code_revision(),
        "python": platform.python_version(),
        "machine": machine(),
        "packages": {name: metadata.version(name) for name in REPORTED_PACKAGES},
    }


def machine() -> str:
    """Return what the driver runs on: processor, cores, NVIDIA GPUs."""
    gpus: dict[str, int] = {}
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        model = re.search(r"^Model:\s*(.+?)\s*$", path.read_text(), re.MULTILINE)
        name = model[1] if model else "NVIDIA GPU"
        gpus[name] = gpus.get(name, 0) + 1
    parts = [platform.machine(), f"{os.cpu_count()} cores", *(f"{count} x {name}" for name, count in gpus.items())]
    return ", ".join(parts)


def code_revision() -> str:
    """Return the checkout's revision, marked when files differ from it; `unknown` outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=root,
            check=False,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"
