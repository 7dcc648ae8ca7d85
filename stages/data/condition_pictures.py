"""What a prior is told, as pictures for people: maps as they are, boxes drawn on white."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stages.data.box_codes import BoxCodes
from stages.data.boxes import draw_boxes
from stages.data.map_shelf import MapShelf, Target
from stages.data.shards import open_split

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact


@dataclass(frozen=True)
class ConditionPictures:
    """Draws the conditions of held-out pictures."""

    shelf: MapShelf | None
    num_labels: int | None
    """Class numbers of the maps, which become shades of grey; None for other maps."""
    box_codes: BoxCodes | None

    @classmethod
    def of(cls, tokens: Artifact, maps: Artifact | None) -> ConditionPictures:
        """Those of an encode artifact and of the maps that it was made with."""
        shelf, num_labels = None, None
        if maps is not None:
            seed = int(tokens.recipe["config"].get("seed", 0))
            shelf = MapShelf(open_split(maps, "val"), 3, tokens.read_json("tokens.json")["image_size"], seed, few=True)
            num_labels = maps.read_json("dataset.json").get("labels")
        return cls(shelf, num_labels, BoxCodes.of(tokens))

    def draw(self, target: Target, box_values_L: Sequence[int] | None, side: int) -> list[np.ndarray]:
        """The pictures of one condition, each uint8 [H, W, 3]; boxes are drawn on `side` pixels.

        Nothing where neither map nor boxes are known: a target without a key, boxes of -1.
        """
        found = []
        if self.shelf is not None and target[0]:
            scale = 255 // (self.num_labels - 1) if self.num_labels else 1
            found.append(self.shelf.read(target) * np.uint8(scale))
        if self.box_codes is not None and box_values_L is not None and min(box_values_L) >= 0:
            (boxes,) = self.box_codes.boxes(np.array([box_values_L]))
            found.append(draw_boxes(boxes, self.box_codes.classes, side))
        return found
