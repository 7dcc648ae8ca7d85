"""What belongs to a workdir and must lie on a local disk: in the workdir, or beside one behind a URL."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from pipeline.storage.folder import Folder

FOLDER = "SMALTI_STATE_DIR"
"""Environment variable: where logs and MLflow's SQLite of remote workdirs lie. Default: `smalti` in XDG_STATE_HOME or
~/.local/state."""


def kept_beside(workdir: Folder) -> Folder:
    """Return the local folder for a workdir's logs and tracking: itself, or one of this machine for a remote one."""
    if workdir.is_local:
        return workdir
    state = os.environ.get(FOLDER) or Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "smalti"
    slug = re.sub(r"[^A-Za-z0-9]+", "-", workdir.url)[-60:].strip("-")
    folder = Folder.at(Path(state).expanduser()) / f"{slug}-{hashlib.sha256(workdir.url.encode()).hexdigest()[:8]}"
    folder.path.mkdir(parents=True, exist_ok=True)
    return folder
