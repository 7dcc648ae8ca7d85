"""The pictures that a tokenizer learns from: whether they fit, and the batches of a rank."""

from __future__ import annotations

from pipeline.artifacts import Artifact
from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError, DataError
from pipeline.runtime import Rank
from stages.data.loader import ImageStream
from stages.data.order import Order
from stages.data.shards import ShardReader, open_split
from stages.training.tokenizer_config import TokenizerConfig


def check_data(config: TokenizerConfig, shards: Artifact) -> None:
    """Raises ConfigError if the pictures do not divide into tokens or there is nothing to train, DataError if a split
    is empty.
    """
    if config.model.quantizer.kind == "used_codes":
        raise ConfigError(
            "tokenizer.model.quantizer.kind=used_codes is what `python -m stages.used_codes` makes of a trained "
            f"tokenizer: train one with kind={config.model.quantizer.quantizer.kind}"
        )
    dataset = shards.read_json("dataset.json")
    size, factor = dataset["image_size"], config.model.factor
    if size % factor:
        raise ConfigError(
            f"the shards hold pictures of {size}x{size}, which do not divide into tokens of {factor}x{factor} pixels: "
            f"set shard.image_size to {size - size % factor or factor} or {size - size % factor + factor}, "
            "or choose another tokenizer.model.backbone"
        )
    for split, use in (("train", "train on"), ("val", "validate on")):
        if not dataset[f"num_{split}"]:
            raise DataError(
                f"the shards hold no {split} pictures to {use}: give the shard stage more, or change "
                "shard.validation_fraction"
            )


def check_ranks(config: TokenizerConfig, rank: Rank) -> None:
    """Raises ConfigError if there are more ranks than pictures in a batch."""
    if config.batch_size < rank.world:
        raise ConfigError(
            f"tokenizer.batch_size {config.batch_size} leaves some of {rank.world} ranks without a picture: "
            f"raise it to {rank.world} at least, or lower cluster.num_workers"
        )


def training_stream(
    config: TokenizerConfig, shards: Artifact, cluster: ClusterConfig, rank: Rank, *, start_step: int
) -> ImageStream:
    """This rank's batches of the training split from `start_step` on."""
    dataset = shards.read_json("dataset.json")
    split = open_split(shards, "train")
    return ImageStream(
        split,
        Order([len(ShardReader(shard)) for shard in split], seed=config.seed),
        seed=config.seed,
        image_size=dataset["image_size"],
        channels=dataset["channels"],
        global_batch=config.batch_size,
        rank=rank.rank,
        world=rank.world,
        start_step=start_step,
        num_workers=cluster.loader_workers,
        horizontal_flip=config.horizontal_flip,
        random_crop=config.random_crop,
    )
