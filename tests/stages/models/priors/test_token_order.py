"""The order of tokens: taming's Z-curve, on grids of any shape."""

from __future__ import annotations

import pytest
import torch

from stages.models.priors.token_order import morton_number, places_in_order
from tests.peers import taming


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (4, 4), (8, 8), (16, 16), (2, 4), (3, 5), (7, 7), (6, 2)])
def test_the_z_curve_is_tamings(grid: tuple[int, int]) -> None:
    theirs = taming("modules.transformer.permuter").ZCurve(*grid)
    places_T = torch.tensor(places_in_order("z_curve", grid))
    assert torch.equal(places_T, theirs.forward_shuffle_idx)
    tokens_BT = torch.randint(0, 9, (3, len(places_T)))
    assert torch.equal(tokens_BT[:, places_T], theirs(tokens_BT))
    if grid[0] == grid[1] and grid[0].bit_count() == 1:  # theirs has no inverse elsewhere
        assert torch.equal(places_T.argsort(), theirs.backward_shuffle_idx)


@pytest.mark.parametrize("order", ["raster", "z_curve"])
def test_every_place_comes_once(order: str) -> None:
    for grid in ((1, 7), (5, 3), (4, 6)):
        assert sorted(places_in_order(order, grid)) == list(range(grid[0] * grid[1]))  # type: ignore[arg-type]


def test_raster_goes_row_by_row() -> None:
    assert places_in_order("raster", (2, 3)) == (0, 1, 2, 3, 4, 5)


def test_morton_numbers_take_bits_in_turns() -> None:
    assert morton_number(0b101, 0b011) == 0b100111
    assert [morton_number(row, column) for row in (0, 1) for column in (0, 1)] == [0, 1, 2, 3]
