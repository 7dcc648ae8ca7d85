"""Stage encode: turns every picture of the corpus into tokens, once, so that the prior never runs the tokenizer."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.artifacts import Artifact, Metrics
from pipeline.config import StrictModel
from pipeline.errors import DataError
from pipeline.output import Output
from pipeline.runtime import BoundRuntime
from pipeline.storage import Folder
from pipeline.units import Unit, Worker
from stages.data.condition_config import ClassCondition, Conditions
from stages.encoding.segments import Known, segments_of

if TYPE_CHECKING:
    from stages.data.box_codes import BoxCodes
    from stages.models.vocabulary import TokenSpace

CAPTIONS = "captions.json"
"""Artifact file: the byte pairs that captions are cut into."""


class EncodeConfig(StrictModel):
    """How pictures are turned into tokens."""

    batch_size: int = Field(default=64, ge=1)
    """Pictures that go through the encoder at once; the last batch of a shard is padded to it. Changes last bits."""
    threads: int = Field(default=1, ge=1)
    """Torch threads of a worker on a CPU; more workers use more cores as well, and better. Changes last bits."""
    flips: bool = False
    """Also encode every training picture mirrored, as variant 1. Off where mirrored pictures are wrong: flags, text."""
    crops: int = Field(default=1, ge=1)
    """Windows of each picture that become tokens, where pictures are larger than the tokenizer's: the middle one, and
    others at places drawn by (seed, key, number of the window)."""
    seed: int = Field(default=0, ge=0)
    """Places the windows."""
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
    config: EncodeWork,
    *,
    shards: Artifact,
    tokenizer: Artifact,
    maps: Artifact | None = None,
    cond_tokenizer: Artifact | None = None,
    vocabulary: Artifact | None = None,
    output: Output,
    runtime: BoundRuntime,
) -> Metrics:
    """Encode every shard as a unit of its own: a grown corpus costs only its new shards.

    With captions it costs all tables, for byte pairs are learnt anew, unless `vocabulary` are earlier tokens whose byte
    pairs are to be used. A spatial condition needs `maps` and the
    tokenizer that learnt them.
    """
    from stages.models.vocabulary import TokenCorpus, TokenSpace

    dataset = shards.read_json("dataset.json")
    captions = _known_captions(config, vocabulary, output) or _learn_captions(config, shards, output)
    box_codes = _number_boxes(config, shards, output)
    map_space = _picture_space(cond_tokenizer, maps.read_json("dataset.json")) if cond_tokenizer and maps else None
    described = _picture_space(tokenizer, dataset)
    known = Known(dataset["classes"], described["grid"], captions, map_space, box_codes)
    segments = segments_of(config.condition, known)
    space = TokenSpace.model_validate({**described, "condition": segments})
    units = plan(config, shards, space, maps, captions, box_codes)
    map_folder = cond_tokenizer.folder if cond_tokenizer else None
    make_worker = functools.partial(load_encoder, tokenizer.folder, map_folder, captions, box_codes)
    started = time.monotonic()
    records = output.map_units(make_worker, units, runtime, label="encode")
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


def load_encoder(
    folder: Folder, map_folder: Folder | None, captions: str | None, box_codes: BoxCodes | None, device: str
) -> Worker:
    """Load the tokenizers once; return the worker that encodes one shard at a time."""
    from stages.data.captions import Captions
    from stages.encoding.shard_encoder import ShardEncoder
    from stages.models.pretrained import fetched
    from stages.models.tokenizer import Tokenizer

    return ShardEncoder(
        device,
        Tokenizer.load(fetched(folder), device),
        Tokenizer.load(fetched(map_folder), device) if map_folder else None,
        Captions(captions) if captions else None,
        box_codes,
    )


def _known_captions(config: EncodeWork, vocabulary: Artifact | None, output: Output) -> str | None:
    """Take over the byte pairs of earlier tokens, and write them, where they are of the configured number."""
    condition = next((it for it in config.condition if it.kind == "caption"), None)
    if condition is None or vocabulary is None:
        return None
    if condition.model_dump(mode="json") not in vocabulary.recipe["config"]["condition"]:
        return None
    with vocabulary.held(CAPTIONS) as path:
        text = path.read_text()
    output.write(CAPTIONS, text.encode())
    return text


def _learn_captions(config: EncodeWork, shards: Artifact, output: Output) -> str | None:
    """Learn byte pairs from the training captions and write them as captions.json, where captions are a condition."""
    condition = next((it for it in config.condition if it.kind == "caption"), None)
    if condition is None:
        return None
    from stages.data.captions import Captions, learn_captions
    from stages.data.shards import ShardReader, open_split

    captions = [row["caption"] for shard in open_split(shards, "train") for row in ShardReader(shard).table]
    if not any(captions):
        raise DataError(
            "condition caption: none of the training pictures has a caption: give the list file a column `caption`, "
            "or choose another condition"
        )
    text = learn_captions(captions, vocabulary_size=condition.vocabulary_size)
    output.write(CAPTIONS, text.encode())
    cut = float((Captions(text).lengths(captions) > condition.length).mean())
    if cut > 0:
        output.warn(f"{cut:.1%} of captions are longer than {condition.length} tokens and lose their end: raise length")
    return text


def _number_boxes(config: EncodeWork, shards: Artifact, output: Output) -> BoxCodes | None:
    """Number the classes and places of boxes and write them as boxes.json, where boxes are a condition."""
    condition = next((it for it in config.condition if it.kind == "boxes"), None)
    if condition is None:
        return None
    from stages.data.box_codes import BOXES, BoxCodes
    from stages.data.shards import ShardReader, boxes_of, open_split

    classes = shards.read_json("dataset.json").get("box_classes")
    if not classes:
        raise DataError(
            "condition boxes: none of the pictures has boxes: give the list file a column `boxes`, or choose another "
            "condition"
        )
    codes = BoxCodes(classes=classes, resolution=condition.resolution)
    output.write_json(BOXES, codes.model_dump(mode="json"))
    counts = [
        len(boxes_of(row) or ()) > condition.max_boxes
        for shard in open_split(shards, "train")
        for row in ShardReader(shard).table
    ]
    if any(counts):
        output.warn(
            f"{sum(counts) / len(counts):.1%} of pictures have more than {condition.max_boxes} boxes and lose the "
            "smallest: raise max_boxes"
        )
    return codes


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


def plan(
    config: EncodeWork,
    shards: Artifact,
    space: TokenSpace,
    maps: Artifact | None,
    captions: str | None,
    box_codes: BoxCodes | None,
) -> list[Unit]:
    """Return a unit for each shard, naming all that decides its table."""
    from stages.data.shards import open_split

    described = space.model_dump(mode="json")
    metadata = {name: value if isinstance(value, str) else json.dumps(value) for name, value in described.items()}
    common = {
        "tokenizer": space.tokenizer,
        "classes": metadata["classes"],
        "segments": described["condition"],
        "condition": [condition.model_dump(mode="json") for condition in config.condition],
        "captions": hashlib.sha256(captions.encode()).hexdigest() if captions else None,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "threads": config.threads,
        "precision": config.precision,
        **({"boxes": box_codes.model_dump(mode="json")} if box_codes else {}),
    }
    units = []
    for split in ("train", "val"):
        sides = (0, 1) if config.flips and split == "train" else (0,)
        variants = [2 * crop + side for crop in range(config.crops) for side in sides]
        maps_of = {shard.name: shard for shard in (open_split(maps, split) if maps else ())}
        for shard in open_split(shards, split):
            beside = maps_of.get(shard.name)
            own = {"shard": shard.digest, "maps": beside.digest if beside else None, "variants": variants}
            payload = {"shard": shard, "maps": beside, "condition": config.condition, "metadata": metadata}
            units.append(Unit(shard.name, {**common, **own}, payload))
    return units
