"""Boxes as numbers and back: three values a box, of classes, of places, and of nothing.

Shapes: N pictures, L values of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from pipeline.config import StrictModel
from stages.data.pictures import Box

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact


BOXES = "boxes.json"
"""File of an encode artifact: the classes and places of its boxes."""


class BoxCodes(StrictModel):
    """The values of box tokens: [0, K) for K classes, then the places of a grid row by row, then "no more boxes".

    A corner is the place round(share * (resolution - 1)) of each axis, as in taming-transformers' objects_bbox; there
    classes and places share numbers.
    """

    classes: tuple[str, ...] = Field(min_length=1)
    """Class names."""
    resolution: int = Field(ge=2)
    """Places along each side."""

    @classmethod
    def of(cls, tokens: Artifact) -> BoxCodes | None:
        """Those of an encode artifact, where boxes are among its conditions."""
        known = any(entry.path == BOXES for entry in tokens.own_files)
        return cls.model_validate(tokens.read_json(BOXES)) if known else None

    @property
    def size(self) -> int:
        """How many values there are."""
        return len(self.classes) + self.resolution**2 + 1

    def values(self, pictures: Sequence[Sequence[Box] | None], max_boxes: int) -> np.ndarray:
        """(class, top left, bottom right) of the largest boxes of each picture, largest first: int64 [N, L].

        L is 3 * `max_boxes`. Boxes are in shares of the side. Of a picture of which nobody said what there is, -1.
        """
        values_NL = np.full((len(pictures), 3 * max_boxes), self.size - 1, dtype=np.int64)
        for values_L, boxes in zip(values_NL, pictures, strict=True):
            if boxes is None:
                values_L[:] = -1
                continue
            ordered = sorted(boxes, key=lambda box: (-(box.right - box.left) * (box.bottom - box.top), box))
            triples = [self._triple(box) for box in ordered[:max_boxes]]
            values_L[: 3 * len(triples)] = [value for triple in triples for value in triple]
        return values_NL

    def boxes(self, values_NL: np.ndarray) -> list[list[Box]]:
        """The boxes that values say, as exactly as places are; a triple that is no box is left out."""
        found = []
        for values_L in values_NL:
            triples = (map(int, values_L[at : at + 3]) for at in range(0, len(values_L), 3))
            found.append([box for box in (self._box(*triple) for triple in triples) if box is not None])
        return found

    def _triple(self, box: Box) -> tuple[int, int, int]:
        return self.classes.index(box.label), self._place(box.left, box.top), self._place(box.right, box.bottom)

    def _place(self, x: float, y: float) -> int:
        column, row = (round(share * (self.resolution - 1)) for share in (x, y))
        return len(self.classes) + row * self.resolution + column

    def _box(self, label: int, first: int, last: int) -> Box | None:
        num_classes = len(self.classes)
        if not (0 <= label < num_classes and all(num_classes <= place < self.size - 1 for place in (first, last))):
            return None
        (top, left), (bottom, right) = (divmod(place - num_classes, self.resolution) for place in (first, last))
        steps = self.resolution - 1
        return Box(self.classes[label], left / steps, top / steps, right / steps, bottom / steps)
