"""One hostile file, and the payload that it may carry."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CANARY = "canary"
"""Appears beside a case's folder when something in it was executed."""


@dataclass(frozen=True)
class Hostile:
    """A file, the reader that meets it in a run, and a pattern that the outcome must match."""

    name: str
    write: Callable[[Path], None]
    """Makes the file in an empty folder."""
    read: Callable[[Path], object]
    """What the pipeline does with it."""
    expected: str
    """A regular expression that must be found in `VERDICT MESSAGE`."""
    most_mb: float = 300.0
    """Resident memory that reading may take."""
    slow: bool = False
    """Left to the command: takes more than a moment."""


class Payload:
    """Unpickling it creates the canary."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch {folder.parent / CANARY}"

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (self.command,)


def pickled(folder: Path) -> bytes:
    """A pickle that creates the canary when it is read."""
    return pickle.dumps(Payload(folder))
