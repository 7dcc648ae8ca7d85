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


class Box(NamedTuple):
    """A rectangle around a thing in a picture, and the thing's class; edges in pixels, or in shares of the side."""

    label: str
    left: float
    top: float
    right: float
    bottom: float


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
    boxes: tuple[Box, ...] | None = None
    """In pixels of the file; None where nobody said what there is."""

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Picture:
        """Undo `list(vars(picture).values())` after JSON; rows from before there were maps or boxes are shorter."""
        path, size, stamp, label, caption, group, *later = row
        maps, boxes = (*later, (), None)[:2] if len(later) < 2 else later
        boxes = None if boxes is None else tuple(Box(*it) for it in boxes)
        return cls(path, size, stamp, label, caption, group, tuple(MapFile(*it) for it in maps), boxes)
