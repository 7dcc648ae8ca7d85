"""What a training starts from: weights that the config names, those of the version in use, or none. No torch."""

from __future__ import annotations

from typing import TypeVar

from pipeline.artifacts import Artifact, Source
from pipeline.versions.registry import Published
from stages.models.pretrained import start_of
from stages.training.prior_config import PriorConfig
from stages.training.tokenizer_config import MapTokenizerConfig, TokenizerConfig

C = TypeVar("C", TokenizerConfig, MapTokenizerConfig, PriorConfig)

GOES_ON = ("finetune", "warm")
"""Policies that start from the parent's weights."""
ENCODE = "encode"


def with_start(config: C, parent: Published | None) -> tuple[C, dict[str, Source | Artifact]]:
    """Return what of a config decides the training, and the inputs to start from.

    A checkpoint that the config names goes before the parent's. Of a parent's prior its tokens come along: they say
    what it was told.
    """
    if config.from_checkpoint is not None:
        return config.alone(), dict(start_of(config.section, config.from_checkpoint))
    if parent is None or config.policy not in GOES_ON or config.section not in parent.artifacts:
        return config.alone(), {}
    beside = {"parent_tokens": parent.artifacts[ENCODE]} if config.section == "prior" else {}
    return config.going_on(), {"checkpoint": parent.artifacts[config.section], **beside}
