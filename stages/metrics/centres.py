"""Pictures of shards as evaluation looks at them: the centre, in the size that the tokenizer was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from stages.data.images import Rejected, decode_image
from stages.data.shards import ShardReader

if TYPE_CHECKING:
    from stages.data.shards import Shard


def read_pictures(shard: Shard | Path, recipe: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The centres of a shard's pictures in the tokenizer's size, and their labels: uint8 [N, H, W, C], int64 [N].

    Raises DataError for a picture that is damaged or smaller than that.
    """
    reader, size, channels = ShardReader(shard), recipe["image_size"], recipe["channels"]
    pictures_NHWC = np.empty((len(reader), size, size, channels), np.uint8)
    for index in range(len(reader)):
        pictures_NHWC[index] = read_picture(reader, index, size, channels)
    return pictures_NHWC, np.array([row["label"] for row in reader.table], np.int64)


def read_picture(reader: ShardReader, index: int, size: int, channels: int) -> NDArray[np.uint8]:
    """The centre of one stored picture: uint8 [size, size, C]."""
    try:
        picture_HWC = decode_image(reader.read_image(index), channels)
    except Rejected as error:
        raise DataError(f"{reader.path}: picture {index} cannot be decoded: {error.reason}") from None
    spare_y, spare_x = picture_HWC.shape[0] - size, picture_HWC.shape[1] - size
    if min(spare_y, spare_x) < 0:
        raise DataError(
            f"{reader.path}: picture {index} is {picture_HWC.shape[1]}x{picture_HWC.shape[0]}, the tokenizer was "
            f"trained on {size}x{size}: run --stages shard,tokenizer with one image_size"
        )
    top, left = (spare_y + 1) // 2, (spare_x + 1) // 2  # as the training's validation and the encode stage cut it
    return picture_HWC[top : top + size, left : left + size]
