"""Running means of weights and logits: exact values, and what is copied instead."""

from __future__ import annotations

import pytest
import torch

from stages.models.tokenizer import Tokenizer
from stages.models.tokenizer_config import EMAQuantizerConfig, LightBackboneConfig, TokenizerModelConfig
from stages.training.averages import LogitAverage, WeightAverage
from stages.training.schedules import warmup_decay


def tokenizer() -> Tokenizer:
    config = TokenizerModelConfig(
        backbone=LightBackboneConfig(channels=(4,), residual_blocks=(0,), norm_groups=4),
        quantizer=EMAQuantizerConfig(num_codes=6, dim=2),
    )
    return Tokenizer(config, image_size=8, channels=1)


def test_weights_follow_a_warmed_up_mean_and_the_codebook_is_copied() -> None:
    source = tokenizer()
    average = WeightAverage(source, decay=0.15)
    weight = source.last_layer_weight
    expected = weight.detach().double().clone()
    for kept in (1 / 10, 0.15, 0.15):  # (1 + n) / (10 + n), at most 0.15
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.add_(torch.randn_like(parameter))
            source.quantize.counts.add_(1)
        average.update(source)
        expected = kept * expected + (1 - kept) * weight.detach().double()

    torch.testing.assert_close(average.network.last_layer_weight.double(), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(average.network.quantize.embedding.weight, source.quantize.embedding.weight)
    assert torch.equal(average.network.quantize.counts, source.quantize.counts)
    assert not any(parameter.requires_grad for parameter in average.network.parameters())


def test_a_weight_average_goes_on_from_its_dump() -> None:
    source = tokenizer()
    average, other = WeightAverage(source, decay=0.9), WeightAverage(tokenizer(), decay=0.9)
    average.update(source)
    other.load(average.dump())
    with torch.no_grad():
        source.last_layer_weight.add_(1)
    for each in (average, other):
        each.update(source)
    for name, value in average.network.state_dict().items():
        assert torch.equal(other.network.state_dict()[name], value), name
    assert other.updates == 2


def test_the_decay_of_weights_rises_to_its_value() -> None:
    assert [warmup_decay(n, 0.5) for n in (0, 1, 8, 900)] == pytest.approx([0.1, 2 / 11, 0.5, 0.5])


def test_logits_have_no_mean_at_first_then_the_plain_one_then_a_moving_one() -> None:
    average = LogitAverage(decay=0.6, like=torch.zeros(1, dtype=torch.float64))
    assert average.anchors is None
    found = []
    for real in (4.0, 2.0, 9.0):
        average.update(torch.tensor([real, -real]))
        assert average.anchors is not None
        found.append(average.anchors.tolist())
    last = 0.6 * 3.0 + 0.4 * 9.0  # 2/3 would be the plain mean's share
    assert found == [pytest.approx([value, -value]) for value in (4.0, 3.0, last)]

    other = LogitAverage(decay=0.6, like=torch.zeros(1, dtype=torch.float64))
    other.load(average.dump())
    assert other.anchors is not None and other.anchors.tolist() == found[-1]
