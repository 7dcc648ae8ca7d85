"""Rotary positions: distances in rows and columns, and nothing else, decide."""

from __future__ import annotations

import torch

from stages.models.priors.rotary import grid_places, rotate, rotation
from stages.models.vocabulary import Segment, Vocabulary


def scores(places: list[tuple[int, int]]) -> torch.Tensor:
    """Product of one query and one key, laid to two places each."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64).expand(2, 1, 1, len(places) // 2, 16)
    rotation_2PR = rotation(torch.tensor(places), 16)
    turned = rotate(query, rotation_2PR[:, ::2]) * rotate(key, rotation_2PR[:, 1::2])
    return turned.sum(-1)[0, 0]


def test_products_depend_on_the_distance_alone() -> None:
    one, same, other_row, other_column = scores(
        [(0, 0), (2, 3), (5, 1), (7, 4), (0, 0), (3, 3), (0, 0), (2, 4)]
    ).tolist()
    assert abs(one - same) < 1e-12
    assert abs(one - other_row) > 1e-3
    assert abs(one - other_column) > 1e-3


def test_rows_and_columns_turn_channels_of_their_own() -> None:
    x_BHSD = torch.ones(1, 1, 2, 8, dtype=torch.float64)
    moved_2D = rotate(x_BHSD, rotation(torch.tensor([[3, 0], [0, 3]]), 8))[0, 0] != 1
    assert moved_2D.tolist() == [[True, True, False, False] * 2, [False, False, True, True] * 2]


def test_the_condition_lies_before_the_grid_and_tokens_lie_where_they_belong() -> None:
    caption = Vocabulary(8, (Segment(kind="caption", length=2, size=4),))
    places_P2 = grid_places(caption, (2, 3), (0, 1, 3, 4, 2))
    assert places_P2.tolist() == [[-2, -2], [-1, -1], [0, 0], [0, 1], [1, 0], [1, 1], [0, 2]]


def test_a_map_lies_beside_the_picture_at_its_size() -> None:
    segments = (
        Segment(kind="class", length=1, size=3),
        Segment(kind="edges", length=2, size=5, grid=(1, 2)),
        Segment(kind="depth", length=12, size=5, grid=(3, 4)),
    )
    places_P2 = grid_places(Vocabulary(8, segments), (3, 4), range(11)).tolist()
    assert places_P2[0] == [-1, -9]  # before both maps
    assert places_P2[1:3] == [[1, 0.5 - 4], [1, 2.5 - 4]]
    assert places_P2[3:15] == [[row, column - 8] for row in range(3) for column in range(4)]
    assert places_P2[15:] == [[place // 4, place % 4] for place in range(11)]
