"""Bits of tokens: what the prior's own probabilities say, whatever the batch size."""

import numpy as np
import pytest
import torch

from stages.metrics.likelihood import token_bits
from stages.models.priors.configs import GPTConfig
from stages.models.priors.gpt import GPT
from stages.models.vocabulary import Vocabulary


def small_prior() -> GPT:
    torch.manual_seed(0)
    config = GPTConfig(num_layers=1, num_heads=2, width=16)
    return GPT(config, vocabulary=Vocabulary.by_class(8, 3), grid=(2, 3)).eval()


def corpus() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 8, (10, 6)).astype(np.uint16), rng.integers(8, 12, (10, 1))


def test_bits_are_those_of_the_probabilities_token_by_token() -> None:
    prior, (tokens, conditions) = small_prior(), corpus()
    bits = token_bits(prior, tokens, conditions, batch_size=4, device="cpu")
    with torch.no_grad():
        condition = torch.from_numpy(conditions)
        probabilities = prior(condition, torch.from_numpy(tokens.astype(np.int64))).double().softmax(-1).numpy()
    expected = [[-np.log2(probabilities[n, t, tokens[n, t]]) for t in range(6)] for n in range(10)]
    assert bits == pytest.approx(np.array(expected), rel=1e-5)


def test_a_prior_that_knows_nothing_needs_log2_of_the_codebook() -> None:
    prior, (tokens, conditions) = small_prior(), corpus()
    torch.nn.init.zeros_(prior.head.weight)
    assert token_bits(prior, tokens, conditions, batch_size=10, device="cpu") == pytest.approx(np.full((10, 6), 3.0))


def test_an_empty_table_has_no_bits() -> None:
    empty = np.zeros((0, 6), np.uint16)
    assert token_bits(small_prior(), empty, np.zeros((0, 1), int), batch_size=4, device="cpu").shape == (0, 6)
