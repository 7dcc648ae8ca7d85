"""What a prior is told about the pictures it draws: the one key `condition`. Imports no torch.

condition: class
condition: [class, {kind: caption, length: 32}, edges]
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat

from pipeline.config import StrictModel


class NoCondition(StrictModel):
    """Nothing: the prior starts from a token that is always the same."""

    kind: Literal["none"] = "none"


class ClassCondition(StrictModel):
    """The picture's class. Data without classes get nothing."""

    kind: Literal["class"] = "class"


class CaptionCondition(StrictModel):
    """The picture's caption as byte-pair tokens (Sennrich et al. 2016), learnt from the captions to train on."""

    kind: Literal["caption"] = "caption"
    length: int = Field(24, ge=1, le=1024)
    """Tokens of a caption: shorter ones are padded, of longer ones the rest is cut off (and said so)."""
    vocabulary_size: int = Field(1024, ge=257)
    """Byte-pair tokens, at most; 257 are needed for padding and single bytes."""


class CoordinatesCondition(StrictModel):
    """Where in its picture a window lies (Esser et al. 2021): the mean place of each token's pixels in reading order.

    Says something only where windows are cut: `encode.crops` above 1 and a `tokenizer.image_size` below the shards'.
    """

    kind: Literal["coordinates"] = "coordinates"
    values: int = Field(1024, ge=2)
    """Steps from the first pixel to the last."""


class BoxesCondition(StrictModel):
    """What is where: class, top left and bottom right corner of each thing (column `boxes` of a list), largest first.

    As in taming-transformers, but for three things: classes and corners have token ranges of their own, the order is
    not random, and of too many things the largest stay.
    """

    kind: Literal["boxes"] = "boxes"
    max_boxes: int = Field(30, ge=1, le=256)
    """Things of a picture, three tokens each; fewer are padded."""
    resolution: int = Field(32, ge=2, le=256)
    """Places of a corner along each side of the picture."""


class EdgesCondition(StrictModel):
    """Canny's edges (1986), computed from the picture."""

    kind: Literal["edges"] = "edges"
    sigma: PositiveFloat = 2.0
    """Standard deviation in pixels of the Gaussian that smooths first."""


class SketchCondition(StrictModel):
    """Soft strokes computed from the picture: extended differences of Gaussians (Winnemoeller et al. 2012)."""

    kind: Literal["sketch"] = "sketch"
    sigma: PositiveFloat = 1.0
    """Standard deviation in pixels of the narrower Gaussian: the width of strokes."""


class LowResolutionCondition(StrictModel):
    """The picture itself, made smaller and large again (bicubic both times)."""

    kind: Literal["low_resolution"] = "low_resolution"
    factor: int = Field(8, ge=2)
    """By how much each side shrinks; it divides the pictures' side."""


class AlphaCondition(StrictModel):
    """Where the picture is opaque, of sources with transparency."""

    kind: Literal["alpha"] = "alpha"


class SegmentationCondition(StrictModel):
    """Class numbers of pixels from the source's own maps (column `segmentation` of a list): grey or palette files."""

    kind: Literal["segmentation"] = "segmentation"
    num_classes: int = Field(ge=2, le=256)
    """Classes; a pixel is a number below this."""


class DepthCondition(StrictModel):
    """Depths from the source's own maps (column `depth` of a list)."""

    kind: Literal["depth"] = "depth"


class PoseCondition(StrictModel):
    """Skeletons drawn by the source's own maps (column `pose` of a list), in colour."""

    kind: Literal["pose"] = "pose"


ComputedMap = EdgesCondition | SketchCondition | LowResolutionCondition
StoredMap = SegmentationCondition | AlphaCondition | DepthCondition | PoseCondition
"""What the shards hold beside the pictures."""
MapCondition = ComputedMap | StoredMap
"""A picture of its own beside each picture, turned into tokens by a tokenizer of its own."""

ConditionConfig = Annotated[
    NoCondition | ClassCondition | CaptionCondition | CoordinatesCondition | BoxesCondition | MapCondition,
    Field(discriminator="kind"),
]


def map_condition(conditions: tuple[ConditionConfig, ...]) -> MapCondition | None:
    """The spatial map among some conditions, where there is one."""
    return next((condition for condition in conditions if isinstance(condition, MapCondition)), None)


def _as_list(value: Any) -> Any:
    """`class` and `{kind: class}` stand for a list of one, a name for its kind with defaults."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    return [{"kind": item} if isinstance(item, str) else item for item in items]


def _combines(conditions: tuple[ConditionConfig, ...]) -> tuple[ConditionConfig, ...]:
    kinds = [condition.kind for condition in conditions]
    repeated = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if not kinds:
        raise ValueError("name a condition, or none")
    if repeated:
        raise ValueError(f"{', '.join(repeated)}: name each condition once")
    if "none" in kinds and len(kinds) > 1:
        raise ValueError(f"none stands alone: leave it out of {', '.join(kinds)}")
    maps = [condition.kind for condition in conditions if isinstance(condition, MapCondition)]
    if len(maps) > 1:
        raise ValueError(f"{', '.join(maps)}: one of these maps at a time, for they share the stage cond_tokenizer")
    return conditions


Conditions = Annotated[tuple[ConditionConfig, ...], BeforeValidator(_as_list), AfterValidator(_combines)]
"""One condition or a list of them; a kind's name is enough where its defaults will do."""
