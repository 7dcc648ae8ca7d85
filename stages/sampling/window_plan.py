"""Which tokens of a large picture can be drawn at once, and what of its windows is worth remembering. No torch.

Shapes: H rows and W columns of the picture's tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from stages.models.vocabulary import Vocabulary

Size = tuple[int, int]
"""Rows and columns of tokens."""


@dataclass(frozen=True)
class Target:
    """A token to be drawn, and the window of the prior's grid that it is drawn from."""

    place: tuple[int, int]
    """Row and column in the picture."""
    window: tuple[int, int]
    """Row and column of the window's first token."""
    position: int
    """The token's place in the window, in raster order: so many of the window's tokens come before it."""
    remembered: int = 0
    """Tokens of the window that were read for an earlier target."""
    first: bool = True
    """Whether nothing of the window was read before, not even its condition."""
    last: bool = True
    """Whether what was read of the window can be forgotten afterwards."""
    room: int = 0
    """Tokens of the window that are read in all, where the first is to be remembered."""


@dataclass(frozen=True)
class WindowPlan:
    """Levels of targets: those of a level need nothing but earlier levels, so they can be drawn at once."""

    levels: tuple[tuple[Target, ...], ...]
    most_remembered: int
    """Tokens, conditions included, that are remembered at the same time at most."""

    @property
    def tokens_read(self) -> int:
        """Tokens that the prior reads, without conditions."""
        return sum(target.position - target.remembered for level in self.levels for target in level)


def window_start(place: int, size: int, side: int) -> int:
    """First row (or column) of the window of a place among `size`: the place in its middle, but inside the picture.

    For a side of 16 the place within the window is that of taming-transformers: the place itself up to 8, then 8, near
    the end 16 less what is left. The middle of an odd side is side // 2 as well.
    """
    return max(0, min(place - side // 2, size - side))


def check_size(size: Size, grid: Size) -> None:
    """Raise ConfigError where a picture of `size` tokens is smaller than the prior's grid."""
    if size[0] < grid[0] or size[1] < grid[1]:
        raise ConfigError(
            f"a picture of {size[0]}x{size[1]} tokens is smaller than the prior's {grid[0]}x{grid[1]}: draw at least "
            "that many and cut, or train a prior on smaller pictures"
        )


def plan_windows(
    size: Size, grid: Size, *, known_HW: np.ndarray | None = None, condition_length: int = 1, memory: int | None = None
) -> WindowPlan:
    """Plan the drawing of a picture in raster order, each token through its window.

    A token needs those of its window that come before it. Each takes part in the first level in which it can; places
    that are known (boolean [H, W]) need not be drawn. A window at an edge serves several targets and reads on where it
    stopped, as long as no more than `memory` tokens are to be remembered; without room it is read anew each time.

    Raises ConfigError where the picture is smaller than the grid.
    """
    check_size(size, grid)
    levels: dict[int, list[Target]] = defaultdict(list)
    level_HW = np.full(size, -1)
    for place in np.argwhere(np.ones(size, bool) if known_HW is None else ~known_HW):
        row, column = map(int, place)
        top, left = window_start(row, size[0], grid[0]), window_start(column, size[1], grid[1])
        above = level_HW[top:row, left : left + grid[1]].max(initial=-1)
        level = 1 + max(above, level_HW[row, left:column].max(initial=-1))
        level_HW[row, column] = level
        levels[level].append(Target((row, column), (top, left), (row - top) * grid[1] + column - left))
    return _with_memory([levels[number] for number in range(len(levels))], condition_length, memory)


def _with_memory(levels: list[list[Target]], condition_length: int, memory: int | None) -> WindowPlan:
    """Decide which windows are remembered: those that serve again, first come first served."""
    positions: dict[tuple[int, int], list[int]] = defaultdict(list)
    for target in (target for level in levels for target in level):
        positions[target.window].append(target.position)
    held: dict[tuple[int, int], Iterator[int]] = {}
    used, most, planned = 0, 0, []
    for level in levels:
        found, forgotten = [], 0
        for target in level:
            window, served = target.window, positions[target.window]
            room = condition_length + served[-1]
            if target.position == served[0] < served[-1] and (memory is None or used + room <= memory):
                held[window] = iter(served)
                used += room
                found.append(replace(target, last=False, room=served[-1]))
            elif window in held:
                last = target.position == served[-1]
                found.append(replace(target, remembered=next(held[window]), first=False, last=last))
                forgotten += room * last
            else:
                found.append(target)
        most, used = max(most, used), used - forgotten
        planned.append(tuple(found))
    return WindowPlan(tuple(planned), most)


def window_warning(vocabulary: Vocabulary) -> str | None:
    """Why pictures larger than those that a prior of this vocabulary learned may come out wrong; None if it is told.

    A window knows its own part of the picture alone, so it is the condition that must say what lies there.
    """
    told = [segment for segment in vocabulary.segments if segment.size]
    if not any(segment.grid for segment in told):
        kinds = " and ".join(segment.kind for segment in told) or "nothing"
        return (
            f"the prior is told {kinds}, the same in every window: larger pictures come out right only where the data "
            "look alike everywhere; otherwise train it with a map or with coordinates (the key `condition`)"
        )
    if any(segment.kind == "boxes" for segment in told):
        return "boxes lie in the picture as the prior learned it: every window is told the same ones"
    return None
