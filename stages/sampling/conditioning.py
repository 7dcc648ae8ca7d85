"""From what people say of a picture (a class, words, boxes, a drawing) to the condition tokens that a prior reads.

Shapes: C condition tokens of all kinds, L values of one kind, H W picture.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from pipeline.errors import ConfigError, DataError
from stages.data.condition_config import ComputedMap
from stages.data.images import Preparation, to_model_range
from stages.data.pictures import Box
from stages.models.tokenizer import Tokenizer
from stages.models.vocabulary import Segment, Vocabulary
from stages.sampling.asking import Ask, BoxLike, Coordinates
from stages.sampling.bundle import Parts
from stages.sampling.canvas import Grid, spread
from stages.sampling.pictures import cut_map, cut_picture

NAMED = 12
"""Classes that a message lists."""
MAP_FIELDS = ("condition_picture", "condition_map")


class Conditioner:
    """Turns what is asked into values of the prior's conditions; what is not said becomes null."""

    def __init__(self, parts: Parts, map_tokenizer: Tokenizer | None = None) -> None:
        self.parts = parts
        self.prior = parts.description
        self.map_tokenizer = map_tokenizer

    def check(self, ask: Ask) -> None:
        """Raise ConfigError where something is said that this prior does not hear, or too little is said."""
        told = ", ".join(self.prior.kinds) or "nothing"
        map_kind = self.parts.map_condition.kind if self.parts.map_condition else "map"
        for field, kind in (
            ("label", "class"),
            ("caption", "caption"),
            ("boxes", "boxes"),
            ("coordinates", "coordinates"),
            *((field, map_kind) for field in MAP_FIELDS),
        ):
            if getattr(ask, field) is not None and kind not in self.prior.kinds:
                raise ConfigError(f"{field}: this prior is told {told}; it was trained without a condition {kind}")
        if ask.condition_picture is not None and ask.condition_map is not None:
            raise ConfigError(f"condition_picture and condition_map both say the {map_kind}: give one of them")
        dropped = self.prior.model.condition_dropout > 0
        if ask.guidance != 1 and not (self.prior.kinds and dropped):
            why = "was trained with condition_dropout=0" if self.prior.kinds else "has no condition"
            raise ConfigError(
                f"guidance={ask.guidance:g}: this prior {why}, so there is nothing to be guided away from"
            )
        unsaid = [kind for kind in self.prior.kinds if kind != "coordinates" and not self._is_said(ask, kind)]
        if unsaid and not dropped:
            raise ConfigError(
                f"say the {' and the '.join(unsaid)} too: this prior was trained with condition_dropout=0 and never "
                "had to do without"
            )

    def tokens(self, ask: Ask, grid: Grid | None = None) -> np.ndarray:
        """The condition [1, C] of a picture of so many token rows and columns; default: of the prior's own size.

        In larger grids, maps and coordinates have as many more tokens, which lie over the picture. Raises ConfigError
        and DataError as `check` does, and for what cannot be understood.
        """
        self.check(ask)
        vocabulary = self.vocabulary(grid or self.prior.grid)
        values = [torch.from_numpy(self._values(segment, ask)[None]) for segment in vocabulary.segments]
        condition_1C: np.ndarray = vocabulary.condition(*values).numpy()
        return condition_1C

    def enlarged(self, condition_NC: np.ndarray, grid: Grid) -> np.ndarray:
        """Conditions of the prior's own size for pictures of so many token rows and columns, which are all there is to
        see. Of a map nothing is known there."""
        vocabulary, own = self.vocabulary(grid), self.prior.vocabulary
        conditions_NC = torch.from_numpy(condition_NC).long()
        values = [
            own.values(conditions_NC, segment.kind)
            if segment.grid is None
            else torch.from_numpy(self._values(segment, Ask())).expand(len(conditions_NC), -1)
            for segment in vocabulary.segments
        ]
        enlarged_NC: np.ndarray = vocabulary.condition(*values).numpy()
        return enlarged_NC

    def vocabulary(self, grid: Grid) -> Vocabulary:
        """The vocabulary of pictures of so many token rows and columns."""
        return spread(self.prior.vocabulary, self.prior.grid, grid)

    def label(self, label: str | int) -> int:
        """The number of a class by its name (in any case) or number. Raises ConfigError for an unknown one."""
        return number_of(label, self.prior.classes, "label")

    def _is_said(self, ask: Ask, kind: str) -> bool:
        fields = {"class": ("label",), "caption": ("caption",), "boxes": ("boxes",)}.get(kind, MAP_FIELDS)
        return any(getattr(ask, field) is not None for field in fields)

    def _values(self, segment: Segment, ask: Ask) -> np.ndarray:
        """The values [L] of one kind of condition; -1: not said."""
        nothing_L = np.full(segment.length, -1, dtype=np.int64)
        if segment.kind == "coordinates":
            return self._places(segment, ask.coordinates)
        if segment.kind == "none" or not self._is_said(ask, segment.kind):
            return nothing_L
        if segment.kind == "class":
            assert ask.label is not None
            return np.array([self.label(ask.label)])
        if segment.kind == "caption":
            return self._caption(segment, ask)
        if segment.kind == "boxes":
            return self._boxes(segment, ask.boxes or ())
        return self._map(segment, ask)

    def _caption(self, segment: Segment, ask: Ask) -> np.ndarray:
        from stages.data.captions import Captions

        text = self.parts.captions
        if text is None:
            raise DataError(f"captions.json is missing beside the prior in {self.parts.place}: write the bundle again")
        values_L: np.ndarray = Captions(text).values([ask.caption or ""], segment.length)[0]
        return values_L

    def _boxes(self, segment: Segment, boxes: Sequence[BoxLike]) -> np.ndarray:
        codes = self.parts.box_codes
        if codes is None:
            raise DataError(f"boxes.json is missing beside the prior in {self.parts.place}: write the bundle again")
        most = segment.length // 3
        if len(boxes) > most:
            raise ConfigError(f"{len(boxes)} boxes: this prior was trained with at most {most}")
        values_L: np.ndarray = codes.values([[_box(box, codes.classes) for box in boxes]], most)[0]
        return values_L

    def _places(self, segment: Segment, coordinates: Coordinates | None) -> np.ndarray:
        """The mean place of each token's pixels in reading order, as `condition_values.coordinate_values`."""
        assert segment.grid is not None
        pixels = self.prior.image_size // self.prior.grid[0]
        high, wide = (side * pixels for side in segment.grid)
        top, left, height, width = coordinates or (0, 0, high, wide)
        if not (0 <= top <= height - high and 0 <= left <= width - wide):
            raise ConfigError(
                f"coordinates {(top, left, height, width)}: {high}x{wide} pixels at row {top}, column {left} do "
                f"not lie in {height}x{width} pixels"
            )
        down_R, right_K = (
            first + (np.arange(side) + 0.5) * pixels - 0.5
            for first, side in zip((top, left), segment.grid, strict=True)
        )
        places_RK = (down_R[:, None] * width + right_K) / (height * width)
        return np.round((segment.size - 1) * places_RK).astype(np.int64).ravel()

    def _map(self, segment: Segment, ask: Ask) -> np.ndarray:
        map_HWC = self.map_picture(ask, segment.grid)
        assert self.map_tokenizer is not None
        device = next(self.map_tokenizer.parameters()).device
        with torch.inference_mode():
            indices_1HW = self.map_tokenizer.encode(to_model_range(map_HWC[None]).to(device))
        values_L: np.ndarray = indices_1HW.flatten().cpu().numpy()
        return values_L

    def map_picture(self, ask: Ask, grid: Grid | None = None) -> np.ndarray:
        """The map that is asked for, uint8 [H, W, C], of the size that makes `grid` tokens of it."""
        from stages.data.conditions import make_map, map_channels  # scipy, which takes half a second

        condition = self.parts.map_condition
        if condition is None or self.map_tokenizer is None:
            raise DataError(f"cond_tokenizer is missing beside the prior in {self.parts.place}: write the bundle again")
        factor = self.map_tokenizer.config.factor
        rows, columns = grid or self.map_tokenizer.grid
        size = rows * factor, columns * factor
        given = ask.condition_map if ask.condition_picture is None else ask.condition_picture
        assert given is not None
        if isinstance(condition, ComputedMap) and ask.condition_picture is not None:
            return make_map(condition, cut_picture(given, self.preparation, "condition picture", size))
        how = replace(self.preparation, channels=map_channels(condition, self.prior.channels))  # type: ignore[arg-type]
        kind = "opacity" if condition.kind == "alpha" and ask.condition_picture is not None else condition.kind
        map_HWC = cut_map(given, kind, how, size)
        if condition.kind == "segmentation" and map_HWC.max() >= condition.num_classes:
            raise DataError(f"the segmentation has class {map_HWC.max()}, this prior knows {condition.num_classes}")
        return map_HWC

    @cached_property
    def preparation(self) -> Preparation:
        """How pictures become the squares that the tokenizer learnt."""
        channels: int = self.prior.channels
        return Preparation(image_size=self.prior.image_size, channels=channels, crop=self.parts.told.crop, min_size=1)  # type: ignore[arg-type]


def number_of(name: str | int, names: Sequence[str], what: str) -> int:
    """The place of a name among some, or a place itself. Raises ConfigError that says what was perhaps meant."""
    folded = [known.casefold() for known in names]
    if isinstance(name, str) and name.casefold() in folded:
        return names.index(name) if name in names else folded.index(name.casefold())
    if str(name).isdecimal():
        if int(name) < len(names):
            return int(name)
        raise ConfigError(f"{what} {name}: this prior knows {len(names)} classes, 0 to {len(names) - 1}")
    close = difflib.get_close_matches(str(name).casefold(), folded, n=1)
    close = close or [known for known in folded if str(name).casefold() in known][:1]
    meant = f"; did you mean {names[folded.index(close[0])]!r}?" if close else "."
    more = ", ..." if len(names) > NAMED else ""
    raise ConfigError(f"{what} {name!r} is unknown{meant} This prior knows {', '.join(names[:NAMED])}{more}")


def _box(box: BoxLike, classes: Sequence[str]) -> Box:
    if len(box) != 5 or not all(isinstance(edge, int | float) and 0 <= edge <= 1 for edge in box[1:]):
        raise ConfigError(f"box {list(box)}: write (class, left, top, right, bottom), edges in shares of the side")
    name, (left, top, right, bottom) = box[0], map(float, box[1:])
    if right <= left or bottom <= top:
        raise ConfigError(f"box {list(box)} is empty: right and bottom must lie beyond left and top")
    return Box(classes[number_of(str(name), classes, "box")], left, top, right, bottom)
