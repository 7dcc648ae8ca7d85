"""Training curves, the codebook's use and distances as inline SVG that follows the page's colours, light or dark.

matplotlib draws with placeholder colours, which become CSS variables of the page; text stays text in its font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Row = Mapping[str, float]

INK, GRID = "#010203", "#040506"
SERIES = ("#0a0b01", "#0a0b02", "#0a0b03")
CSS_COLOURS = {
    INK: "var(--muted)",
    GRID: "var(--line)",
    **{colour: f"var(--series-{i})" for i, colour in enumerate(SERIES, 1)},
}


@dataclass(frozen=True)
class Chart:
    """What one chart shows: history keys with their names, drawn over steps."""

    title: str
    series: tuple[tuple[str, str], ...]
    logarithmic: bool = False


class Drawing(NamedTuple):
    """A chart for the page, which writes its title and the names of its lines."""

    title: str
    names: tuple[str, ...]
    """In the order of the page's series colours."""
    svg: str


@dataclass(frozen=True)
class Axes:
    """How lines are drawn."""

    x_label: str
    logarithmic: bool = False
    percent: bool = False
    """Whether y is in percents."""
    smooth: bool = False
    """Whether long lines are drawn faintly under their running mean."""
    x_limits: tuple[float, float] | None = None
    size: tuple[float, float] = (4.15, 2.3)
    """Inches: wide, or one of two in a row."""


WIDE = (8.6, 2.3)

TOKENIZER_CHARTS = (
    Chart("Reconstruction, PSNR in dB (held-out)", (("validation/psnr", "held-out"),)),
    Chart("Reconstruction, SSIM (held-out)", (("validation/ssim", "held-out"),)),
    Chart(
        "Loss terms before their weights",
        (("train/reconstruction", "pixels"), ("train/perceptual", "perceptual"), ("train/codebook", "codebook")),
        logarithmic=True,
    ),
    Chart("Adversarial terms", (("train/adversarial", "tokenizer"), ("train/discriminator", "discriminator"))),
    Chart("Codes in use", (("train/codes_used", "training"), ("validation/codes_used", "held-out"))),
    Chart(
        "Adversarial weight: its two factors",
        (("train/adaptive_weight", "adaptive"), ("train/adversarial_weight", "scheduled")),
        logarithmic=True,
    ),
    Chart("Discriminator's logits", (("train/logits_real", "real"), ("train/logits_fake", "reconstructed"))),
)
PRIOR_CHARTS = (
    Chart("Bits per token", (("train/bits_per_token", "training"), ("validation/bits_per_token", "held-out"))),
    Chart("Learning rate", (("train/learning_rate", "learning rate"),)),
    Chart("Gradient norm", (("train/gradient_norm", "gradient norm"),)),
)


def draw_charts(charts: Sequence[Chart], history: Sequence[Row]) -> list[Drawing]:
    """The charts that the history has numbers for, over the same steps."""
    drawn = []
    steps = (0.0, max((row["step"] for row in history), default=0.0))
    for chart in charts:
        lines = [(name, *_points(history, key)) for key, name in chart.series]
        lines = [(name, at, values) for name, at, values in lines if values.any()]
        if lines:
            # Some terms can be negative, as the entropy loss of lookup-free codes.
            logarithmic = chart.logarithmic and all(values.min() >= 0 for _, _, values in lines)
            axes = Axes("step", smooth=True, logarithmic=logarithmic, x_limits=steps)
            drawn.append(_draw(chart.title, lines, axes))
    return drawn


def draw_codebook(corpus_K: NDArray[np.int64], held_out_K: NDArray[np.int64]) -> Drawing:
    """How often each code occurs, codes sorted by frequency: flat is a codebook in full use."""
    lines = []
    for name, counts_K in (("whole corpus", corpus_K), ("held-out", held_out_K)):
        share_K = np.sort(counts_K)[::-1] / max(int(counts_K.sum()), 1) * 100
        lines.append((name, np.arange(1, len(share_K) + 1), np.where(share_K > 0, share_K, np.nan)))
    limits = (0, max(len(corpus_K), len(held_out_K)))
    axes = Axes("codes, most frequent first", logarithmic=True, percent=True, x_limits=limits, size=WIDE)
    return _draw("", lines, axes)


def draw_nearness(samples_Q: NDArray[np.float64], held_out_Q: NDArray[np.float64]) -> Drawing:
    """Which share of pictures is nearer to its training picture than x, from evenly spaced quantiles of distances."""
    lines = [
        (name, distances_Q, np.linspace(0, 100, len(distances_Q)))
        for name, distances_Q in (("samples", samples_Q), ("held-out pictures", held_out_Q))
    ]
    return _draw("", lines, Axes("distance to the nearest training picture", percent=True, size=WIDE))


def _points(history: Sequence[Row], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    found = [(row["step"], row[key]) for row in history if key in row]
    points = np.array(found, np.float64).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A centred running mean over 5% of the points, shrinking at the ends."""
    half = len(values) // 40
    sums = np.concatenate([[0.0], values.cumsum()])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    smooth: NDArray[np.float64] = (sums[high] - sums[low]) / (high - low)
    return smooth


def _draw(title: str, lines: Sequence[tuple[str, Any, Any]], axes: Axes) -> Drawing:
    """Draw named lines: (name, x, y) each."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "smalti",
        "font.size": 9,
        "font.family": "sans-serif",
        "axes.edgecolor": GRID,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=axes.size, layout="constrained")
        plot = figure.add_subplot()
        for colour, (_, x, values) in zip(SERIES, lines, strict=False):
            y = np.asarray(values, np.float64)
            noisy = axes.smooth and len(y) >= 40
            if noisy:
                plot.plot(x, y, color=colour, linewidth=0.8, alpha=0.25)
            marker = "o" if len(y) == 1 else None
            plot.plot(x, _smooth(y) if noisy else y, color=colour, linewidth=1.8, marker=marker)
        _dress(plot, axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Drawing(title, tuple(name for name, _, _ in lines), _for_page(buffer.getvalue()))


def _dress(plot: Any, axes: Axes) -> None:
    """Scales, ticks and grid."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    plot.yaxis.set_major_locator(MaxNLocator(5))
    if axes.logarithmic:
        plot.set_yscale("log", nonpositive="mask")
    if axes.percent or axes.logarithmic:
        unit = "%" if axes.percent else ""
        plot.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))
    if axes.x_limits is not None:
        plot.set_xlim(*axes.x_limits)
    plot.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    plot.set_xlabel(axes.x_label)
    plot.grid(axis="y", color=GRID, linewidth=0.8)
    plot.spines[["top", "right", "left"]].set_visible(False)
    plot.tick_params(length=0)
    plot.minorticks_off()


def _for_page(svg: str) -> str:
    """The bare <svg> element, its colours the page's, its size left to the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'(<svg\b[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r' id="(?!p[0-9a-f]{10}|m[0-9a-f]{10})[^"]*"', "", svg)
    for colour, variable in CSS_COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg
