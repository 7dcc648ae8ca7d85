"""Every quantizer learns the same from a global batch, however it is cut over ranks and micro-batches; in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.runtime import Rank
from stages.models.quantizers.configs import (
    CosineQuantizerConfig,
    FSQQuantizerConfig,
    GradientQuantizerConfig,
    GumbelQuantizerConfig,
    LookupFreeQuantizerConfig,
)
from stages.training.fabric import open_fabric
from tests.stages.training.gangs import rank_of, run_gang
from tests.stages.training.steps import BATCH, batch_of, build, config_of, take_steps, worst_difference

QUANTIZERS = {
    "cosine": CosineQuantizerConfig(num_codes=24, dim=4, restart_threshold=0.3),
    "gradient": GradientQuantizerConfig(num_codes=24, dim=4),
    "gradient, not legacy": GradientQuantizerConfig(num_codes=24, dim=4, legacy=False),
    "gumbel": GumbelQuantizerConfig(num_codes=24, dim=4, kl_weight=0.1, temperature_steps=5),
    "gumbel, mixing": GumbelQuantizerConfig(num_codes=24, dim=4, kl_weight=0.1, straight_through=False),
    "fsq": FSQQuantizerConfig(levels=(5, 4, 3)),
    "lookup_free": LookupFreeQuantizerConfig(bits=4, entropy_weight=0.5),
    "lookup_free, in groups": LookupFreeQuantizerConfig(bits=4, entropy_weight=0.5, entropy_groups=2),
}
CASES = [(name, 0.8) for name in QUANTIZERS] + [("lookup_free", 0.0), ("lookup_free, in groups", 0.0)]
"""With an adversarial term or without: a quantizer that looks at the whole batch goes another way then."""

Found = dict[tuple[str, float, int], dict[str, Any]]


def learn(rank: Rank, cuts: tuple[int, ...]) -> Found:
    """What each quantizer comes to in each case, in micro-batches of each size."""
    with open_fabric(rank, precision="64-true") as fabric:
        return {
            (name, weight, cut): take_steps(
                fabric, rank, config_of(quantizer=QUANTIZERS[name], weight=weight), cut, steps=2
            )
            for name, weight in CASES
            for cut in cuts
        }


@pytest.fixture(scope="module")
def at_once() -> Found:
    return learn(rank_of(), (BATCH,))


def assert_same(found: Found, at_once: Found) -> None:
    for (name, weight, cut), arrays in found.items():
        expected = at_once[name, weight, BATCH]
        worst, tensor = worst_difference(arrays, expected)
        assert worst < 1e-9, (name, weight, cut, tensor)
        assert (expected["counts"] > 0).sum() > 1, name


def test_micro_batches_change_nothing(at_once: Found) -> None:
    assert_same(learn(rank_of(), (2,)), at_once)


@pytest.mark.slow
def test_two_ranks_change_nothing(at_once: Found) -> None:
    """They hold 3 and 4 pictures: in micro-batches of 3 one has one, the other two."""
    for found in run_gang(2, learn, (3,)):
        assert_same(found, at_once)


def test_codebooks_and_projections_get_gradients_and_move(at_once: Found) -> None:
    learnt = {
        "gradient": ["embedding.weight"],
        "gradient, not legacy": ["embedding.weight"],
        "gumbel": ["embed.weight", "proj.weight", "proj.bias"],
        "gumbel, mixing": ["embed.weight", "proj.weight", "proj.bias"],
    }
    for name, tensors in learnt.items():
        for tensor in tensors:
            assert abs(at_once[name, 0.8, BATCH][f"gradient/tokenizer/quantize.{tensor}"]).max() > 0, (name, tensor)


def test_the_entropy_of_the_whole_batch_is_in_the_loss() -> None:
    """The recorded term is that of the plain formula over all vectors of the global batch."""
    config = config_of(quantizer=QUANTIZERS["lookup_free"], weight=0.0)
    with open_fabric(rank_of(), precision="64-true") as fabric:
        gradients = build(fabric, rank_of(), config, micro_batch=3).gradients
        tokenizer = gradients.state.tokenizer
        numbers = gradients.take(batch_of(0), adversarial_weight=0.0, trains_discriminator=False)
        with torch.no_grad():
            z_ND = tokenizer.quant_conv(tokenizer.encoder(batch_of(0))).permute(0, 2, 3, 1).reshape(-1, 4)
        corners_KD = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4)
        p_NK = (-torch.cdist(z_ND, corners_KD).square()).softmax(dim=1)
        spread = torch.special.entr(p_NK).sum(dim=1).mean() - torch.special.entr(p_NK.mean(dim=0)).sum()
        expected = 0.25 * (z_ND - torch.where(z_ND > 0, 1.0, -1.0)).square().mean() + 0.5 * spread
    torch.testing.assert_close(numbers.shares["codebook"], expected, rtol=1e-9, atol=1e-12)
