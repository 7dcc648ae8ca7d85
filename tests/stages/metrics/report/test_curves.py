"""Curves are deterministic SVG in the page's own colours."""

import re

import numpy as np

from stages.metrics.report.curves import PRIOR_CHARTS, TOKENIZER_CHARTS, draw_charts, draw_codebook, draw_nearness

HISTORY = [
    {
        "step": step,
        "train/bits_per_token": 9 - step / 50,
        **({"validation/bits_per_token": 8.0} if step % 10 == 0 else {}),
    }
    for step in range(1, 80)
]


def test_only_charts_with_numbers_are_drawn() -> None:
    assert [drawing.title for drawing in draw_charts(PRIOR_CHARTS, HISTORY)] == ["Bits per token"]
    assert draw_charts(TOKENIZER_CHARTS, HISTORY) == []
    assert draw_charts(PRIOR_CHARTS, []) == []


def test_a_chart_is_the_same_bytes_again_and_takes_its_colours_from_the_page() -> None:
    first, again = draw_charts(PRIOR_CHARTS, HISTORY)[0], draw_charts(PRIOR_CHARTS, HISTORY)[0]
    assert first == again and first.names == ("training", "held-out")
    assert first.svg.startswith("<svg") and "var(--series-1)" in first.svg and "var(--series-2)" in first.svg
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]", first.svg)
    assert "<metadata" not in first.svg and "<?xml" not in first.svg and "<image" not in first.svg
    assert not re.search(r"<svg[^>]* (width|height)=", first.svg)


def test_charts_of_one_history_span_the_same_steps() -> None:
    late = [{"step": step, "train/logits_real": 1.0 * step, "train/logits_fake": -1.0} for step in range(900, 1001, 10)]
    drawings = draw_charts(TOKENIZER_CHARTS, [{"step": 1, "train/codes_used": 5.0}, *late])
    assert [drawing.title for drawing in drawings] == ["Codes in use", "Discriminator's logits"]
    assert all(">0</text>" in drawing.svg and ">1000</text>" in drawing.svg for drawing in drawings)


def test_a_factor_that_is_zero_at_first_is_no_line_on_a_logarithmic_scale() -> None:
    history = [{"step": step, "train/adversarial_weight": 0.0 if step < 5 else 0.2} for step in range(1, 10)]
    (drawing,) = draw_charts(TOKENIZER_CHARTS, history)
    assert "nan" not in drawing.svg.lower() and "inf" not in drawing.svg.lower()


def test_a_term_that_becomes_negative_is_drawn_and_one_that_is_always_zero_is_not() -> None:
    terms = {"train/reconstruction": 0.5, "train/perceptual": 0.0, "train/codebook": -0.2}
    (drawing,) = draw_charts(TOKENIZER_CHARTS, [{"step": step, **terms} for step in range(1, 10)])
    assert drawing.names == ("pixels", "codebook")
    assert "−0.2<" in drawing.svg  # a mark of the scale


def test_codebook_chart_spans_all_codes_though_some_never_occur() -> None:
    counts = np.zeros(400, np.int64)
    counts[:100] = np.arange(1, 101)
    drawing = draw_codebook(counts, counts // 10)
    assert ">400</text>" in drawing.svg and drawing.names == ("whole corpus", "held-out")


def test_nearness_is_drawn_from_none_to_all_pictures() -> None:
    drawing = draw_nearness(np.linspace(1, 5, 11), np.linspace(2, 9, 11))
    assert drawing.names == ("samples", "held-out pictures")
    assert ">0%</text>" in drawing.svg and ">100%</text>" in drawing.svg
