"""The order in which a prior meets a picture's tokens: places of the grid, numbered row by row. Free of torch."""

from __future__ import annotations

from typing import Literal


def places_in_order(order: Literal["raster", "z_curve"], grid: tuple[int, int]) -> tuple[int, ...]:
    """The place of each token of the sequence in a grid of (rows, columns) of any size.

    `z_curve` sorts places by their Morton number (Morton 1966), rows before columns, as `ZCurve` of
    taming-transformers does; unlike there it has an inverse where the sides are no powers of 2.
    """
    rows, columns = grid
    places = range(rows * columns)
    if order == "raster":
        return tuple(places)
    return tuple(sorted(places, key=lambda place: morton_number(*divmod(place, columns))))


def morton_number(row: int, column: int) -> int:
    """The bits of both numbers in turns; each of the row's is above that of the column."""
    bits = max(row, column).bit_length()
    return sum((row >> bit & 1) << (2 * bit + 1) | (column >> bit & 1) << (2 * bit) for bit in range(bits))
