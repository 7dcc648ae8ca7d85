"""A grid of numbers as inline SVG in the page's own colours, light or dark: the darker a place, the more."""

from __future__ import annotations

from html import escape

import numpy as np
from numpy.typing import NDArray

CELL = 40  # units of the drawing
PALEST, FULLEST = 6, 58  # percents of colour: at the fullest, ink on it can still be read
LARGEST_LABELLED = 12  # places in a row; more leave no room for numbers


def draw_map(values_HW: NDArray[np.float64], unit: str, *, colour: str = "--series-1") -> str:
    """Draw values at their places; each place says its number when pointed at, small grids also print them."""
    low, high = float(values_HW.min()), float(values_HW.max())
    height, width = values_HW.shape
    parts = [f'<svg viewBox="0 0 {width * CELL} {height * CELL}" role="img" aria-label="{escape(unit)} at each place">']
    for row in range(height):
        for column in range(width):
            value = float(values_HW[row, column])
            share = (value - low) / (high - low) if high > low else 0.0
            fill = f"color-mix(in srgb, var({colour}) {PALEST + (FULLEST - PALEST) * share:.0f}%, var(--card))"
            x, y = column * CELL, row * CELL
            place = f"row {row + 1}, column {column + 1}: {value:.2f} {unit}"
            parts.append(
                f'<g><title>{escape(place)}</title><rect x="{x + 1}" y="{y + 1}" width="{CELL - 2}" '
                f'height="{CELL - 2}" rx="4" style="fill: {fill}"/>'
            )
            if max(height, width) <= LARGEST_LABELLED:
                parts.append(f'<text x="{x + CELL / 2:g}" y="{y + CELL / 2:g}">{_rounded(value)}</text>')
            parts.append("</g>")
    return "".join([*parts, "</svg>"])


def _rounded(value: float) -> str:
    """One digit after the point, a true minus, and no minus before nothing."""
    return f"{round(value, 1) + 0.0:.1f}".replace("-", "\u2212")
