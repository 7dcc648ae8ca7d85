"""The tokenizer's configuration: what is refused, and with which remedy."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import validate
from pipeline.errors import ConfigError
from stages.models.losses.configs import DiscriminatorConfig
from stages.training.tokenizer_config import TokenizerConfig, TokenizerOptimizerConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_learning_rate": 0.1}, r"min_learning_rate 0\.1 is above learning_rate 0\.001.*set schedule to constant"),
        ({"warmup_steps": 50, "schedule_steps": 40}, r"schedule_steps 40 ends before warmup_steps 50"),
        ({"betas": (0.5, 1.0)}, r"betas \[0\.5, 1\.0\]"),
        ({"schedule": "step"}, r"schedule.*'constant', 'linear' or 'cosine'"),
        ({"clip_gradient": 0.0}, r"clip_gradient.*greater than 0"),
    ],
)
def test_an_optimizer_that_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(TokenizerOptimizerConfig, settings, "test")


@pytest.mark.parametrize("settings", [{"schedule": "constant"}, {"schedule_steps": None}])
def test_a_constant_learning_rate_does_not_mind_where_a_schedule_would_end(settings: dict[str, Any]) -> None:
    optimizer = TokenizerOptimizerConfig(learning_rate=1e-5, warmup_steps=9999, **settings)
    assert optimizer.min_learning_rate > optimizer.learning_rate


@pytest.mark.parametrize("settings", [{"ema_decay": 1.0}, {"precision": "fp16"}])
def test_averages_that_never_move_and_unknown_precisions_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        validate(TokenizerConfig, settings, "test")


def test_a_discriminator_s_odd_channels_are_refused_with_the_next_that_fit() -> None:
    with pytest.raises(ConfigError, match=r"base_channels 12 .* multiple of 8; take 16"):
        validate(DiscriminatorConfig, {"base_channels": 12}, "test")
