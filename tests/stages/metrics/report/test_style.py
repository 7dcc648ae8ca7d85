"""The page's style and templates: colours that can be read, and no markup from outside."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import stages.metrics.report as home

FOLDER = Path(home.__file__).parent
OURS = {"header", "body", "place.title", "begin", "end", "drawing.svg", "svg", '(evaluation or "")'}
"""Markup of our own templates and drawings: all that may go into a page unescaped."""


def palettes() -> list[dict[str, str]]:
    """The colours in light, in dark and on paper."""
    blocks = re.findall(r":root \{(.*?)\}", (FOLDER / "page.css").read_text(), re.DOTALL)
    return [
        {name: _long(value) for name, value in re.findall(r"--([a-z0-9-]+): (#[0-9a-f]+)", block)} for block in blocks
    ]


def _long(colour: str) -> str:
    return colour if len(colour) == 7 else "#" + "".join(2 * digit for digit in colour[1:])


def contrast(first: str, second: str) -> float:
    """WCAG 2.2, definition of contrast ratio."""

    def luminance(colour: str) -> float:
        channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(map(luminance, (first, second)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("look", [0, 1, 2], ids=["light", "dark", "print"])
def test_text_reaches_the_contrast_of_wcag_aa_and_lines_that_of_graphics(look: int) -> None:
    colours = palettes()[look]
    for ground in ("paper", "card"):
        for text in ("ink", "muted", "accent", "warm", "old"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for line in ("series-1", "series-2", "series-3"):
            assert contrast(colours[line], colours[ground]) >= 3, (line, ground)


def test_contrast_is_that_of_the_definition() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_nothing_but_our_own_markup_goes_into_a_page_unescaped() -> None:
    templates = sorted(FOLDER.glob("*.j2"))
    found = {name.strip() for path in templates for name in re.findall(r"\{\{\s*([^{}]*?)\|safe", path.read_text())}
    assert len(templates) == 9 and found == OURS
    assert not any("autoescape" in path.read_text() for path in templates)
