"""Curves are deterministic SVG in the page's own colours."""

import re

import numpy as np

from stages.metrics.report.curves import PRIOR_CHARTS, TOKENIZER_CHARTS, draw_charts, draw_codebook

HISTORY = [
    {
        "step": step,
        "train/bits_per_token": 9 - step / 50,
        **({"validation/bits_per_token": 8.0} if step % 10 == 0 else {}),
    }
    for step in range(1, 80)
]


def test_only_charts_with_numbers_are_drawn() -> None:
    assert [title for title, _ in draw_charts(PRIOR_CHARTS, HISTORY)] == ["Bits per token"]
    assert draw_charts(TOKENIZER_CHARTS, HISTORY) == []
    assert draw_charts(PRIOR_CHARTS, []) == []


def test_a_chart_is_the_same_bytes_again_and_takes_its_colours_from_the_page() -> None:
    (_, first), (_, again) = draw_charts(PRIOR_CHARTS, HISTORY)[0], draw_charts(PRIOR_CHARTS, HISTORY)[0]
    assert first == again
    assert first.startswith("<svg") and "var(--series-1)" in first and "var(--series-2)" in first
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]", first)
    assert ">held-out</text>" in first
    assert "<metadata" not in first and "<?xml" not in first
    assert not re.search(r"<svg[^>]* (width|height)=", first)


def test_codebook_chart_spans_all_codes_though_some_never_occur() -> None:
    counts = np.zeros(400, np.int64)
    counts[:100] = np.arange(1, 101)
    svg = draw_codebook(counts, counts // 10)
    assert ">400</text>" in svg and "whole corpus" in svg
