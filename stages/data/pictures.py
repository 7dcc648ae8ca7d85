"""What is known about a picture before it is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

UNLABELLED = "pictures"
"""The one class of a source without labels."""


class MapFile(NamedTuple):
    """A file that maps a picture: where its things, depths or limbs are."""

    kind: str
    path: str
    bytes: int
    stamp: str


@dataclass(frozen=True)
class Picture:
    """A source file with what is known about it. Two are equal if they would become the same sample."""

    path: str
    bytes: int
    stamp: str
    label: str
    """Name of its class."""
    caption: str
    group: str
    maps: tuple[MapFile, ...] = ()

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Picture:
        """Undo `list(vars(picture).values())` after JSON; rows from before there were maps are shorter."""
        path, size, stamp, label, caption, group, *maps = row
        return cls(path, size, stamp, label, caption, group, tuple(MapFile(*it) for it in (maps[0] if maps else ())))
