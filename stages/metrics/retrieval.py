"""At which place the own caption of a picture comes among others: what retrieval is measured by.

Legend: N pictures, M captions to look among.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

CANDIDATES = 100
"""Captions among which a picture's own is looked for."""


def caption_places(
    own_N: Values, scores_NM: Values, captions: Sequence[str], others: Sequence[str], rng: np.random.Generator
) -> Values:
    """The place of each picture's own caption among `CANDIDATES`, the others drawn from `others`; ties are halved.

    `own_N` is how much the own caption promises, `scores_NM` how much each of `others` does.
    """
    found_N = np.empty(len(captions))
    for n, caption in enumerate(captions):
        rivals = [m for m, other in enumerate(others) if other != caption]
        scores = scores_NM[n, rng.choice(rivals, CANDIDATES - 1, replace=False)]
        found_N[n] = 1 + (scores > own_N[n]).sum() + (scores == own_N[n]).sum() / 2
    return found_N
