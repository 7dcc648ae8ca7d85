"""What survives a power cut: contents pushed to the disk, and the names of new folders in the folders above them."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Push a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, so that none of them is gone after a power cut while what refers to it stays.

    Without this a manifest can outlive the units that it lists: their folder was made by another name's commit.
    """
    missing = [path, *path.parents]
    missing = missing[: next(i for i, folder in enumerate(missing) if folder.exists())]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)
