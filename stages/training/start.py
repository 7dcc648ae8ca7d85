"""Training that starts from trained weights: whether they fit what is to be trained, and what to change if not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipeline.config import StrictModel, flatten
from pipeline.errors import ConfigError, DataError
from pipeline.storage import Folder
from stages.models.losses.discriminator import described_by
from stages.models.pretrained import Part, home_of, is_foreign
from stages.models.pretrained_weights import PretrainedTokenizer, load_pretrained_prior, load_pretrained_tokenizer
from stages.models.priors.configs import PriorDescription
from stages.models.tokenizer import Tokenizer
from stages.models.vocabulary import TokenCorpus
from stages.training.prior_config import PriorConfig
from stages.training.tokenizer_config import TokenizerConfig

FREE = (
    *("dropout", "condition_dropout", "pkeep", "decay", "commitment", "restart_threshold", "beta", "legacy"),
    *("straight_through", "kl_weight", "temperature_start", "temperature_end", "temperature_steps"),
    *("temperature_schedule", "entropy_weight", "diversity", "entropy_temperature", "entropy_groups"),
)
"""Keys of a model that only say how it is trained: weights fit whatever they are."""


def refuse_own_result(part: Part, place: str, workdir: Folder) -> None:
    """Raise ConfigError where `place` leads to whatever this workdir's stage makes last: each run would start from the
    one before."""
    home = None if is_foreign(place) else home_of(place, part)
    if home is None or not (home.is_local and workdir.is_local):
        return
    found = home.path.resolve()
    if found != home.path and found.is_relative_to(workdir.path.resolve()):
        raise ConfigError(
            f"{part}.from_checkpoint {place} leads to this workdir's latest {part}, which the run is about to replace: "
            f"set it to {found}"
        )


def load_tokenizer_start(
    config: TokenizerConfig, dataset: Mapping[str, Any]
) -> tuple[PretrainedTokenizer, tuple[str, ...]]:
    """The weights of `config.from_checkpoint`, and remarks for the user; its discriminator only if it is of the
    configured sizes. `dataset` is the content of dataset.json.

    Raises ConfigError naming every key that differs from what the weights are of.
    """
    assert config.from_checkpoint is not None
    start = load_pretrained_tokenizer(config.from_checkpoint, config.section)
    complaints = _differences(f"{config.section}.model", config.model, start.model)
    if dataset["channels"] != start.channels:
        complaints.append(_line("shard.channels", dataset["channels"], start.channels))
    if not complaints:
        with torch.device("meta"):
            places = Tokenizer(config.model, image_size=dataset["image_size"], channels=start.channels).state_dict()
        _check_weights(config, start.weights, places, dataset["image_size"], start.image_size)
    _refuse(config.section, config.from_checkpoint, complaints)
    remarks = []
    if dataset["image_size"] != start.image_size:
        remarks.append(
            f"the tokenizer of {config.from_checkpoint} was trained on pictures of {start.image_size}x"
            f"{start.image_size}, these are of {dataset['image_size']}x{dataset['image_size']}"
        )
    differing = _another_judge(config, start) if start.judge_weights else ""
    if differing:
        start = replace(start, judge_weights={})
        if config.losses.discriminator.weight > 0:
            remarks.append(
                f"the discriminator of {config.from_checkpoint} is not taken, one of the configured sizes starts anew; "
                f"to go on with it set {differing}"
            )
    return start, tuple(remarks)


def load_prior_start(config: PriorConfig, corpus: TokenCorpus) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights of `config.from_checkpoint`, and remarks for the user.

    Raises ConfigError naming every key that differs from what the weights are of.
    """
    assert config.from_checkpoint is not None
    start = load_pretrained_prior(config.from_checkpoint)
    then, now = start.description, PriorDescription.of(config.model, corpus.space)
    complaints = _differences("prior.model", config.model, then.model)
    pairs = {
        "tokenizer.model.quantizer.num_codes": (now.codebook_size, then.codebook_size),
        "shard.image_size, in tokens": (now.grid, then.grid),
        "condition": (_told(now), _told(then)),
    }
    complaints += [_line(key, *pair) for key, pair in pairs.items() if pair[0] != pair[1]]
    _refuse("prior", config.from_checkpoint, complaints)
    remarks = []
    if now.tokenizer != then.tokenizer:
        remarks.append(
            f"the prior of {config.from_checkpoint} was trained on tokens of tokenizer {then.tokenizer[:12]}, these "
            f"are of {now.tokenizer[:12]}: unless both have the same weights, it has to learn what the codes mean anew"
        )
    if now.classes != then.classes:
        remarks.append(
            f"its classes were {', '.join(then.classes[:3])}..., here they are {', '.join(now.classes[:3])}...: "
            "they are taken in this order"
        )
    return start.weights, tuple(remarks)


def _told(description: PriorDescription) -> str:
    """The condition tokens, in words."""
    return ", ".join(f"{it.kind} ({it.length} tokens of {it.size} values)" for it in description.condition)


def _differences(section: str, now: StrictModel, then: StrictModel) -> list[str]:
    """A line for each key that the weights decide and that is set to something else."""
    configured, trained = (flatten(model.model_dump(mode="json")) for model in (now, then))
    return [
        _line(f"{section}.{key}", configured.get(key, "not there"), value)
        for key, value in trained.items()
        if key.rpartition(".")[2] not in FREE and configured.get(key) != value
    ]


def _line(key: str, now: Any, then: Any) -> str:
    return f"  {key} is {now}, the checkpoint's {then}"


def _refuse(part: str, place: str, complaints: list[str]) -> None:
    if complaints:
        head = f"{part}.from_checkpoint {place} is another model; set these keys to the checkpoint's values:"
        raise ConfigError("\n".join([head, *complaints]))


def _check_weights(
    config: TokenizerConfig, weights: Mapping[str, Tensor], places: Mapping[str, Tensor], now: int, then: int
) -> None:
    if {name: tensor.shape for name, tensor in weights.items()} == {n: t.shape for n, t in places.items()}:
        return
    if now != then:
        raise ConfigError(
            f"{config.section}.from_checkpoint {config.from_checkpoint} was trained on pictures of {then}x{then}, and "
            f"at {now}x{now} its layers lie elsewhere: set shard.image_size={then}"
        )
    raise DataError(
        f"{config.from_checkpoint}: its weights are not those of its configuration; make or import it again"
    )


def _another_judge(config: TokenizerConfig, start: PretrainedTokenizer) -> str:
    """The keys to set for the checkpoint's discriminator to go on; nothing if it can."""
    trained, configured = described_by(start.judge_weights), config.losses.discriminator
    if trained is None:
        return "another kind of discriminator, which there is none of here"
    keys = ("base_channels", "num_layers", "norm")
    differing = [key for key in keys if getattr(trained, key) != getattr(configured, key)]
    return ", ".join(f"losses.discriminator.{key}={getattr(trained, key)}" for key in differing)
