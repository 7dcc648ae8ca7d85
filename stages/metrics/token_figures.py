"""What tokens tell: how the corpus uses the codebook, and how well the prior predicts pictures that it has not seen."""

from __future__ import annotations

import numpy as np

from stages.metrics.codebook import perplexity, used_share
from stages.metrics.figures import Figure, figure
from stages.metrics.measured import Measured
from stages.metrics.weighting import Weighting, bootstrap, bootstrap_mean


def codebook_figures(measured: Measured) -> dict[str, Figure]:
    """Use of the codebook; nothing where the corpus is not in these tokens."""
    if not measured.train_codes_K.any():
        return {}
    figures: dict[str, Figure] = {}
    corpus_K = measured.train_codes_K + measured.held_out_codes_K
    share, equal = "share of the codebook's codes that occur at least once", "exp of the entropy of code frequencies"
    for name, counts_K, on in (
        ("held_out", measured.held_out_codes_K, "tokens of held-out pictures"),
        ("corpus", corpus_K, "tokens of the whole corpus"),
    ):
        tokens = int(counts_K.sum())
        figures[f"codebook_used_{name}"] = figure(used_share(counts_K), share, on, "higher", samples=tokens)
        figures[f"codebook_perplexity_{name}"] = figure(perplexity(counts_K), equal, on, "higher", samples=tokens)
    return figures


def likelihood_figures(measured: Measured, num_codes: int, seed: int) -> dict[str, Figure]:
    """Bits for a token, of held-out and of training pictures; nothing where they were not measured."""
    if not len(measured.held_out_bits_N):
        return {}
    held_out_N, train_N = measured.held_out_bits_N, measured.train_bits_N
    held_out = Weighting.plain(len(held_out_N), measured.held_out_bits_groups_N)
    train = Weighting.plain(len(train_N), measured.train_bits_groups_N)
    uniform = float(np.log2(num_codes))
    bits = "bits for a token, given the condition and the tokens before it"
    gap = bootstrap(lambda w_N, v_N: float(w_N @ held_out_N - v_N @ train_N), held_out, train, seed=seed)
    return {
        "bits_per_token_held_out": {
            **figure(
                bootstrap_mean(held_out_N, held_out, seed=seed),
                f"{bits}; a prior that knows nothing needs {uniform:.2f}",
                "tokens of held-out pictures",
                "lower",
                samples=len(held_out_N),
            ),
            "uniform": uniform,
        },
        "bits_per_token_train": figure(
            bootstrap_mean(train_N, train, seed=seed),
            bits,
            "tokens of training pictures, about as many as held-out",
            "lower",
            samples=len(train_N),
        ),
        "overfit_gap": figure(
            gap,
            "held-out minus training bits per token: how much the prior learned by heart",
            "tokens of held-out pictures against those of training pictures",
            "lower",
            samples=len(held_out_N),
            against=len(train_N),
        ),
    }
