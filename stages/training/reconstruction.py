"""How well held-out pictures come back through the tokenizer: numbers over all ranks, and a picture to look at.

Legend: N pictures, B batch, C channels, H height, W width, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import DataError
from stages.data.images import encode_image, to_model_range, to_uint8
from stages.data.loader import load_all
from stages.data.shards import Shard, ShardReader
from stages.models.fidelity import SSIM_WINDOW, picture_l1, picture_psnr, picture_ssim, round_to_8_bits
from stages.models.label_maps import label_accuracy
from stages.models.quantizers.quantizer import codes_used, perplexity
from stages.models.tokenizer import Tokenizer
from stages.training.fabric import Fabric, all_reduce_sum

GRID_COLUMNS = 12
GRID_PAIRS = 36
MARGIN = 6
GAP = 1
BACKGROUND = 236
SMALL_SIDE = 96


@dataclass(frozen=True)
class HeldOut:
    """Held-out pictures on this rank."""

    slice_NHWC: np.ndarray
    """This rank's part of them, uint8."""
    grid_NHWC: np.ndarray
    """Those of the picture to look at, evenly spread over all; the same on every rank."""

    @classmethod
    def load(
        cls, shards: Sequence[Shard], *, image_size: int, channels: int, limit: int, rank: int, world: int
    ) -> HeldOut:
        """Decodes the first `limit` pictures of the split, of larger ones the middle. Raises DataError without any."""
        if not shards:
            raise DataError("there are no held-out pictures to validate on: raise shard.validation_fraction")
        pictures_NHWC, _, _ = load_all(_first(shards, limit), channels)
        top, left = ((side - image_size + 1) // 2 for side in pictures_NHWC.shape[1:3])
        pictures_NHWC = pictures_NHWC[:limit, top : top + image_size, left : left + image_size]
        count = len(pictures_NHWC)
        shown = np.unique(np.linspace(0, count - 1, min(count, GRID_PAIRS)).round().astype(int))
        mine = pictures_NHWC[count * rank // world : count * (rank + 1) // world]
        return cls(mine.copy(), pictures_NHWC[shown])


@torch.no_grad()
def validate(tokenizer: Tokenizer, held_out: HeldOut, fabric: Fabric, *, batch_size: int) -> dict[str, float]:
    """PSNR in dB, SSIM and L1 on the scale [0, 1] (means over pictures), codes used and perplexity. Collective.

    Of label maps also the share of pixels of the right class: that is the figure which means something there.
    Pictures are rounded to 8 bits first, as they would be stored. There is no SSIM of those smaller than its window.
    """
    figures = {"psnr": picture_psnr, "l1": picture_l1}
    if min(held_out.grid_NHWC.shape[1:3]) >= SSIM_WINDOW:
        figures["ssim"] = picture_ssim
    if tokenizer.config.labels:
        figures["accuracy"] = label_accuracy
    sums = torch.zeros(len(figures) + 1, dtype=torch.float64, device=fabric.device)
    counts_K = torch.zeros(tokenizer.num_codes, dtype=torch.float64, device=fabric.device)
    for start in range(0, len(held_out.slice_NHWC), batch_size):
        x_BCHW = _to_device(held_out.slice_NHWC[start : start + batch_size], fabric.device)
        indices_BHW = tokenizer.encode(x_BCHW)
        x_hat_BCHW = round_to_8_bits(tokenizer.decode(indices_BHW))
        totals = [figure(x_hat_BCHW, x_BCHW).sum() for figure in figures.values()]
        sums += torch.stack([*totals, sums.new_tensor(len(x_BCHW))])
        counts_K += torch.bincount(indices_BHW.flatten(), minlength=tokenizer.num_codes)
    reduced = all_reduce_sum(fabric, torch.cat([sums, counts_K])).cpu()
    *totals, count = reduced[: len(sums)].tolist()
    return {
        **{f"validation/{name}": total / count for name, total in zip(figures, totals, strict=True)},
        "validation/codes_used": codes_used(reduced[len(sums) :]),
        "validation/perplexity": perplexity(reduced[len(sums) :]),
    }


def reconstruction_grid(tokenizer: Tokenizer, held_out: HeldOut, device: torch.device) -> bytes:
    """A PNG of held-out pictures, each above its reconstruction; small ones twice as large."""
    x_hat_BCHW = tokenizer.reconstruct(_to_device(held_out.grid_NHWC, device))
    return encode_image(_pairs(held_out.grid_NHWC, to_uint8(x_hat_BCHW)), "png")


def _pairs(originals_NHWC: np.ndarray, reconstructions_NHWC: np.ndarray) -> np.ndarray:
    count, height, width, channels = originals_NHWC.shape
    zoom = 2 if height < SMALL_SIDE else 1
    height, width = height * zoom, width * zoom
    columns = min(count, GRID_COLUMNS)
    rows = -(-count // columns)
    cell_height, cell_width = 2 * height + GAP + 2 * MARGIN, width + MARGIN
    canvas = np.full((rows * cell_height, columns * cell_width + MARGIN, channels), BACKGROUND, dtype=np.uint8)
    for number in range(count):
        top = number // columns * cell_height + MARGIN
        left = number % columns * cell_width + MARGIN
        for picture, offset in ((originals_NHWC[number], 0), (reconstructions_NHWC[number], height + GAP)):
            enlarged = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
            canvas[top + offset : top + offset + height, left : left + width] = enlarged
    return canvas


def _first(shards: Sequence[Shard], limit: int) -> list[Shard]:
    """As many leading shards as hold `limit` pictures, so that a large split is not decoded for a few of them."""
    chosen, held = [], 0
    for shard in shards:
        chosen.append(shard)
        held += len(ShardReader(shard))
        if held >= limit:
            break
    return chosen


def _to_device(pictures_NHWC: np.ndarray, device: torch.device) -> Tensor:
    # The default type is the one in which training runs, see open_fabric.
    return to_model_range(pictures_NHWC).to(device, torch.get_default_dtype(), memory_format=torch.channels_last)
