"""What candidates are scored by: the prior's likelihood, or a trained scorer that looks at the pictures.

Shapes: N samples, B batch, C channels, H W picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from stages.data.images import to_model_range
from stages.sampling.picture_scorers import SeeingScorer
from stages.sampling.samples import Samples
from stages.sampling.selection_config import SelectionConfig

Scorer = Callable[[Samples, Sequence[str]], np.ndarray]
"""Scores [N] of samples, given the caption that each was drawn from; of those without one, empty."""


def load_scorer_of(selection: SelectionConfig, folder: Path | None, device: str, batch_size: int) -> Scorer:
    """The scorer that a config names; `folder` holds its files, unless it is the likelihood."""
    if selection.kind == "likelihood":
        return token_likelihood
    assert folder is not None, "the graph gives the scorer of a config that names one"
    seeing = SeeingScorer.load(folder, device)
    by_caption = selection.kind == "two_tower"

    def scores(samples: Samples, captions: Sequence[str]) -> np.ndarray:
        pairs = zip(captions, samples.classes, strict=True)
        wanted = [caption or name for caption, name in pairs] if by_caption else samples.classes
        # Padded as drawing is: only a fixed shape gives the same bits wherever a sample lands.
        rows = [min(row, len(wanted) - 1) for row in range(batch_size)]
        x_BCHW = to_model_range(samples.pictures_NHWC[rows]).to(device)
        return seeing.scores(x_BCHW, [wanted[row] for row in rows])[: len(wanted)]

    return scores


def token_likelihood(samples: Samples, captions: Sequence[str]) -> np.ndarray:
    """Nats a token, the condition given."""
    scores_N: np.ndarray = samples.log_likelihood_N / samples.tokens_NT.shape[1]
    return scores_N
