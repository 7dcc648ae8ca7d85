"""Rotary positions (Su et al. 2021, RoPE) of tokens that have a row and a column."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from stages.models.vocabulary import Vocabulary

# Shapes: B batch, H heads, S positions fed at once, P positions, D width of a head,
# R = D/2 pairs of a head's channels, F = D/4 frequencies of an axis.

BASE = 10_000.0
"""Frequencies fall from 1 to nearly 1 / BASE radians a step; LlamaGen's, and the paper's."""


def grid_places(vocabulary: Vocabulary, grid: tuple[int, int], order: Sequence[int]) -> Tensor:
    """Row and column [P, 2] of each position: the condition's tokens, then the image's in `order`; float64.

    Image tokens lie in their grid. A condition's map lies to the left of it, stretched to its size: every image token
    is as far from what the map says of its place. All other condition tokens come before that on both axes, one after
    another along the diagonal, as text before a picture in Qwen2-VL (Wang et al. 2024, M-RoPE).
    """
    rows, columns = grid
    maps = [segment for segment in vocabulary.segments if segment.grid is not None]
    texts = vocabulary.condition_length - sum(segment.length for segment in maps)
    diagonal, left = iter(range(-texts, 0)), 0
    places = []
    for segment in vocabulary.segments:
        if segment.grid is None:
            places += [(float(place), float(place - columns * len(maps))) for place in islice(diagonal, segment.length)]
            continue
        left -= columns
        high, wide = rows / segment.grid[0], columns / segment.grid[1]
        places += [
            ((row + 0.5) * high - 0.5, (column + 0.5) * wide - 0.5 + left)
            for row in range(segment.grid[0])
            for column in range(segment.grid[1])
        ]
    places += [(float(place // columns), float(place % columns)) for place in order]
    return torch.tensor(places, dtype=torch.float64)


def rotation(places_P2: Tensor, head_width: int) -> Tensor:
    """Cosines and sines [2, P, R] by which `rotate` turns a head's pairs of channels; float64.

    The first half of the pairs turns with the row, the second with the column, each with F frequencies.
    """
    steps_F = torch.arange(head_width // 4, dtype=torch.float64) / (head_width // 4)
    angles_P2F = places_P2.double()[:, :, None] * BASE**-steps_F
    angles_PR = angles_P2F.flatten(1)
    return torch.stack([angles_PR.cos(), angles_PR.sin()])


def rotate(x_BHSD: Tensor, rotation_2SR: Tensor) -> Tensor:
    """Queries or keys, turned: the product of two depends on their distance in rows and columns alone.

    Channel d is paired with channel d + D/2.
    """
    cos_SR, sin_SR = rotation_2SR.to(x_BHSD.dtype)
    real, imaginary = x_BHSD.chunk(2, dim=-1)
    return torch.cat([real * cos_SR - imaginary * sin_SR, real * sin_SR + imaginary * cos_SR], dim=-1)
