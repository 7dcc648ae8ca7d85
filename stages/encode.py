"""Stage encode: turns every picture of the corpus into tokens, once, so that the prior never runs the tokenizer."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.artifacts import Artifact, Metrics
from pipeline.config import StrictModel
from pipeline.errors import DataError
from pipeline.output import Output
from pipeline.runtime import BoundRuntime
from pipeline.units import Unit, Worker
from stages.data.condition_config import ClassCondition, Conditions

if TYPE_CHECKING:
    from stages.data.shards import Shard
    from stages.models.vocabulary import TokenSpace


class EncodeConfig(StrictModel):
    """How pictures are turned into tokens."""

    batch_size: int = Field(default=64, ge=1)
    """Pictures that go through the encoder at once; the last batch of a shard is padded to it. Changes last bits."""
    threads: int = Field(default=1, ge=1)
    """Torch threads of a worker on a CPU; more workers use more cores as well, and better. Changes last bits."""
    flips: bool = False
    """Also encode every training picture mirrored, as variant 1. Off where mirrored pictures are wrong: flags, text."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the encoder; bf16 is faster on GPUs and on CPUs with AMX, and changes a few tokens."""


class EncodeWork(EncodeConfig):
    """All that decides the tables: how pictures become tokens, and what is said of each."""

    condition: Conditions = (ClassCondition(),)
    """The tokens that stand in front of a picture's own."""

    @classmethod
    def of(cls, config: EncodeConfig, condition: Conditions) -> EncodeWork:
        """Join the section `encode` of a config with its key `condition`."""
        return cls(**config.model_dump(), condition=condition)


def encode(
    config: EncodeWork, *, shards: Artifact, tokenizer: Artifact, output: Output, runtime: BoundRuntime
) -> Metrics:
    """Encode every shard as a unit of its own: a grown corpus costs only its new shards."""
    from stages.data.shards import open_split
    from stages.models.vocabulary import TokenCorpus, TokenSpace

    dataset = shards.read_json("dataset.json")
    described = _picture_space(tokenizer, dataset)
    space = TokenSpace.model_validate({**described, "condition": _segments(config, dataset)})
    units = [
        _unit(config, shard, space, num_variants=2 if config.flips and split == "train" else 1)
        for split in ("train", "val")
        for shard in open_split(shards, split)
    ]
    folder = tokenizer.local("model.safetensors").parent
    tokenizer.local("config.json")
    started = time.monotonic()
    records = output.map_units(functools.partial(load_encoder, folder), units, runtime, label="encode")
    seconds = time.monotonic() - started

    def total(key: str, prefix: str = "") -> int:
        return sum(record.counts[key] for record in records if record.name.startswith(prefix))

    used = functools.reduce(lambda codes, record: codes | int(record.counts["codes"], 16), records, 0)
    corpus = TokenCorpus(**dict(space), num_train=total("rows", "train-"), num_val=total("rows", "val-"))
    output.write_json("tokens.json", corpus.model_dump(mode="json"))
    if records and output.units_reused < len(records):
        encoded = total("pictures") * (1 - output.units_reused / len(records))
        output.notes["pictures_per_second"] = round(encoded / seconds, 1)
    return {
        "pictures": total("pictures"),
        "tokens": total("rows") * corpus.num_tokens,
        "codes_used": used.bit_count(),
        "codebook_use": used.bit_count() / corpus.codebook_size,
    }


def load_encoder(tokenizer_folder: Path, device: str) -> Worker:
    """Load the tokenizer once; return the worker that encodes one shard at a time."""
    from stages.encoding.shard_encoder import ShardEncoder
    from stages.models.tokenizer import Tokenizer

    return ShardEncoder(Tokenizer.load(tokenizer_folder, device), device)


def _picture_space(tokenizer: Artifact, dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `TokenSpace` without conditions, without loading the tokenizer's weights or torch."""
    from stages.models.tokenizer_config import TokenizerModelConfig

    described = tokenizer.read_json("config.json")
    if described["channels"] != dataset["channels"]:
        raise DataError(
            f"the tokenizer was trained on {described['channels']} channels, the shards have {dataset['channels']}: "
            "run --stages tokenizer"
        )
    model = TokenizerModelConfig.model_validate(described["model"])
    side = described["image_size"] // model.factor
    return {
        "tokenizer": tokenizer.digest,
        "codebook_size": model.quantizer.num_codes,
        "grid": [side, side],
        "classes": dataset["classes"],
        "image_size": described["image_size"],
        "channels": described["channels"],
    }


def _segments(config: EncodeWork, dataset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of a `Segment` for each condition."""
    sizes = {"class": len(dataset["classes"])}
    return [{"kind": it.kind, "length": 1, "size": sizes.get(it.kind, 0)} for it in config.condition]


def _unit(config: EncodeWork, shard: Shard, space: TokenSpace, *, num_variants: int) -> Unit:
    described = space.model_dump(mode="json")
    metadata = {name: value if isinstance(value, str) else json.dumps(value) for name, value in described.items()}
    return Unit(
        name=shard.name,
        recipe={
            "shard": shard.digest,
            "tokenizer": space.tokenizer,
            "classes": metadata["classes"],
            "segments": described["condition"],
            "condition": [condition.model_dump(mode="json") for condition in config.condition],
            "num_variants": num_variants,
            "batch_size": config.batch_size,
            "threads": config.threads,
            "precision": config.precision,
        },
        payload={"shard": shard, "condition": config.condition, "metadata": metadata},
    )
