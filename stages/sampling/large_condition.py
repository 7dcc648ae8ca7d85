"""The condition of a picture larger than those that a prior learned, and what each of its windows is told.

Shapes: B pictures, H W tokens of the picture, L tokens of a condition without places, C condition tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from stages.models.priors.prior import Prior
from stages.models.vocabulary import Segment, Vocabulary


@dataclass(frozen=True)
class LargeCondition:
    """Conditions of B pictures of H x W tokens: maps and coordinates as large as the picture, the others as ever."""

    vocabulary: Vocabulary
    grid: tuple[int, int]
    """The prior's."""
    size: tuple[int, int]
    """Rows and columns of the pictures' tokens."""
    parts: tuple[Tensor, ...]
    """Condition tokens of each segment: [B, L], or [B, rows, columns] where they lie over the picture."""

    @classmethod
    def of_values(cls, prior: Prior, size: tuple[int, int], *values: Tensor) -> LargeCondition:
        """From the values of each segment, [B, L] (or [B] where L is 1) or [B, rows, columns]; negative ones are null.

        A map has as many tokens for a window as the prior learned: where its grid is twice the prior's, 2H x 2W.
        Raises ConfigError where a map has another size, or a coarser grid than the picture, which no window can cut.
        """
        vocabulary, parts = prior.vocabulary, []
        for number, (segment, given) in enumerate(zip(vocabulary.segments, values, strict=True)):
            if segment.grid is None:
                parts.append(vocabulary.tokens_of(number, given.reshape(len(given), segment.length)))
                continue
            rows, columns = map_size(segment, prior.grid, size)
            if tuple(given.shape[1:]) != (rows, columns):
                raise ConfigError(
                    f"{segment.kind} of {'x'.join(map(str, given.shape[1:]))} tokens for a picture of "
                    f"{size[0]}x{size[1]} tokens: give {rows}x{columns}"
                )
            parts.append(vocabulary.tokens_of(number, given))
        return cls(vocabulary, prior.grid, size, tuple(parts))

    def __len__(self) -> int:
        return len(self.parts[0])

    @property
    def device(self) -> torch.device:
        """Where the tokens are."""
        return self.parts[0].device

    def window(self, top: int, left: int) -> Tensor:
        """Condition tokens [B, C] of the window whose first token is at (top, left)."""
        tokens = []
        for segment, part in zip(self.vocabulary.segments, self.parts, strict=True):
            if segment.grid is None:
                tokens.append(part)
                continue
            rows, columns = segment.grid
            y, x = top * rows // self.grid[0], left * columns // self.grid[1]
            tokens.append(part[:, y : y + rows, x : x + columns].flatten(1))
        return torch.cat(tokens, dim=1)

    def of(self, pictures: slice) -> LargeCondition:
        """Those of some of the pictures."""
        return LargeCondition(self.vocabulary, self.grid, self.size, tuple(part[pictures] for part in self.parts))


def map_size(segment: Segment, grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a map's tokens beside `size` of a picture, for a prior of `grid`. Raises ConfigError."""
    assert segment.grid is not None
    if segment.grid[0] % grid[0] or segment.grid[1] % grid[1]:
        raise ConfigError(
            f"{segment.kind} has {segment.grid[0]}x{segment.grid[1]} tokens for {grid[0]}x{grid[1]} of the picture: "
            "windows cut a map only where its grid is that of the picture, or a multiple; train with such a "
            "cond_tokenizer"
        )
    return size[0] * segment.grid[0] // grid[0], size[1] * segment.grid[1] // grid[1]


def coordinate_map(size: tuple[int, int], *, token_pixels: int, values: int) -> Tensor:
    """Values [H, W] of coordinates over a large picture: round(values * mean over a token's pixels of their place).

    A window cut from it is what `coordinate_values` gives for that window of a stored picture of this size.
    """
    rows, columns = (side * token_pixels for side in size)
    places = torch.arange(rows * columns, dtype=torch.float64) / (rows * columns)
    cells = places.view(size[0], token_pixels, size[1], token_pixels)
    return (values * cells.mean(dim=(1, 3))).round().long()
