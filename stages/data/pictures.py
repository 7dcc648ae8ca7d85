"""What is known about a picture before it is decoded."""

from __future__ import annotations

from dataclasses import dataclass

UNLABELLED = "pictures"
"""The one class of a source without labels."""


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
