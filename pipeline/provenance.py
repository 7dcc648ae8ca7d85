"""Where, when and with what something was made: for people, never part of a digest."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

REPORTED_PACKAGES = ("torch", "lightning-fabric", "ray", "mlflow", "webdataset", "pyarrow", "numpy", "pillow")


def provenance(seconds: float, run_id: str | None) -> dict[str, Any]:
    """Return where, when and with what an artifact was made: for people, never part of a digest."""
    return {
        "seconds": round(seconds, 2),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "run_id": run_id,
        "code": code_revision(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "packages": {name: metadata.version(name) for name in REPORTED_PACKAGES},
    }


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
