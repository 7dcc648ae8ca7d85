"""Loads what a trained tokenizer or prior consists of, from folders of ours and from foreign checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from pipeline.errors import DataError, shown
from pipeline.storage import Folder
from stages.models.interop.checkpoint import Checkpoint, read_checkpoint
from stages.models.interop.net2net import FIRST_STAGE, read_net2net
from stages.models.interop.vqgan import VQGAN, read_vqgan
from stages.models.pretrained import CONFIG, JUDGE, TRAINING, WEIGHTS, Part, home_of, is_foreign
from stages.models.priors.configs import PriorDescription
from stages.models.tokenizer import Tokenizer
from stages.models.tokenizer_config import TokenizerModelConfig
from stages.models.weights import read_weights


@dataclass(frozen=True)
class PretrainedTokenizer:
    """A trained tokenizer and, where it was kept, its discriminator."""

    model: TokenizerModelConfig
    image_size: int
    channels: int
    weights: dict[str, Tensor]
    judge_weights: dict[str, Tensor]
    """Of `PatchDiscriminator`; empty where there is none."""


@dataclass(frozen=True)
class PretrainedPrior:
    """A trained prior."""

    description: PriorDescription
    weights: dict[str, Tensor]


def load_pretrained_tokenizer(place: str, part: Part = "tokenizer") -> PretrainedTokenizer:
    """Read a tokenizer. Raises DataError where there is none or its files are damaged."""
    if is_foreign(place):
        vqgan = _first_stage(read_checkpoint(Path(place)))
        return PretrainedTokenizer(vqgan.model, vqgan.image_size, vqgan.channels, vqgan.weights, vqgan.judge_weights)
    home = _home(place, part)
    found = Tokenizer.load(home.url)
    return PretrainedTokenizer(
        found.config, found.image_size, found.channels, found.state_dict(), discriminator_weights(home)
    )


def load_pretrained_prior(place: str) -> PretrainedPrior:
    """Read a prior. Raises DataError where there is none or its files are damaged."""
    if is_foreign(place):
        checkpoint = read_checkpoint(Path(place))
        prior = read_net2net(checkpoint, _first_stage(checkpoint), tokenizer=Path(place).name)
        return PretrainedPrior(prior.description, prior.weights)
    home = _home(place, "prior")
    try:
        description = PriorDescription.model_validate_json(home.read(CONFIG))
    except ValidationError as error:
        raise DataError(f"{home}/{CONFIG} describes no prior of this version: {shown(str(error))}") from None
    return PretrainedPrior(description, read_weights(home.local(WEIGHTS)))


def discriminator_weights(home: Folder) -> dict[str, Tensor]:
    """The discriminator that was trained with, or imported beside, the tokenizer in this folder; empty without one."""
    if home.exists(JUDGE):
        return read_weights(home.local(JUDGE))
    if not home.exists(TRAINING):
        return {}
    return read_weights(home.local(TRAINING), "discriminator/")


def _first_stage(checkpoint: Checkpoint) -> VQGAN:
    if not checkpoint.has(FIRST_STAGE):
        return read_vqgan(checkpoint)
    params = checkpoint.params.get("first_stage_config", {}).get("params", {})
    return read_vqgan(checkpoint.below(FIRST_STAGE, params))


def _home(place: str, part: Part) -> Folder:
    home = home_of(place, part)
    if home is None:
        raise DataError(f"{place} holds no trained {part} ({CONFIG} and {WEIGHTS}): name a run's or an import's folder")
    return home
