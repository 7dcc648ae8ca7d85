"""Codebook use: shares and perplexity of small corpora whose answers are known."""

import numpy as np
import pytest

from stages.metrics.codebook import count_codes, perplexity, used_share


def test_counts_of_parts_add_up_to_those_of_the_whole() -> None:
    tokens = np.random.default_rng(0).integers(0, 16, (20, 8)).astype(np.uint16)
    assert (count_codes(tokens[:7], 16) + count_codes(tokens[7:], 16) == count_codes(tokens, 16)).all()
    assert count_codes(tokens, 16).sum() == tokens.size


def test_used_share_counts_codes_that_occur() -> None:
    assert used_share(count_codes(np.array([[0, 0, 3], [3, 3, 1]]), 8)) == 3 / 8


def test_perplexity_of_equally_frequent_codes_is_their_number() -> None:
    assert perplexity(count_codes(np.arange(12), 64)) == pytest.approx(12.0)
    assert perplexity(count_codes(np.zeros(5, int), 64)) == pytest.approx(1.0)
    assert perplexity(np.array([3, 1])) == pytest.approx(2 ** (0.75 * np.log2(4 / 3) + 0.25 * 2))
