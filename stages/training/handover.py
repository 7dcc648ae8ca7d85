"""How a gang's result gets from rank 0 to the driver: through storage, both may be on different machines. No torch."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.output import Output
from pipeline.storage import Folder

LATEST = "LATEST"
"""Names the committed checkpoints, newest first; replaced atomically, so it is what commits one."""
RESULT = "result-"
"""How the names of uncollected results begin."""


def training_folder(output: Output, *, stop_keys: Collection[str]) -> Folder:
    """Where this training keeps its checkpoints and results; emptied if the user forces the stage."""
    folder = output.checkpoints(stop_keys=stop_keys)
    if output.fresh:
        folder.remove(LATEST)  # first: killed in between, nothing must name checkpoints that are gone
        folder.remove("")
    for result in sorted({name.partition("/")[0] for name in folder.names() if name.startswith(RESULT)}):
        folder.remove(result)  # a killed driver did not come to collect it
        output.checkpoints(stop_keys=stop_keys)  # writes down anew whose they are
    return folder


def hand_over(folder: Folder, files: Path) -> str:
    """On rank 0: commit all files of the local folder `files` as a result; return its name for `collect`."""
    name = f"{RESULT}{secrets.token_hex(6)}"
    for path in sorted(files.iterdir()):
        with (folder / name).writing(path.name) as target:
            shutil.copyfile(path, target)
    return name


def collect(folder: Folder, name: str, output: Output, *, notes: Sequence[str] = ()) -> None:
    """In the driver: move the result's files into the artifact (those in `notes` outside its digest)."""
    home = folder / name
    for file in home.names():
        with output.writing(file, content=file not in notes) as target:
            shutil.copyfile(home.local(file), target)
    folder.remove(name)
