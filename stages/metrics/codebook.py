"""How a corpus uses the codebook: the share of codes that occur, and the perplexity of their frequencies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def count_codes(tokens: NDArray[np.integer], num_codes: int) -> NDArray[np.int64]:
    """How often each code occurs: any shape of tokens -> counts_K. Counts of parts add up to those of the whole."""
    return np.bincount(np.asarray(tokens, np.int64).ravel(), minlength=num_codes).astype(np.int64)


def used_share(counts_K: NDArray[np.int64]) -> float:
    """The share of codes that occur at least once, in [0, 1]."""
    return float((counts_K > 0).mean())


def perplexity(counts_K: NDArray[np.int64]) -> float:
    """exp of the entropy of the codes' frequencies: the number of equally frequent codes that would be as diverse."""
    frequencies = counts_K[counts_K > 0] / counts_K.sum()
    return float(np.exp(-(frequencies * np.log(frequencies)).sum()))
