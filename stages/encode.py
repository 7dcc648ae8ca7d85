"""Stage encode: turns every picture of the corpus into tokens, once, so that the prior never runs the tokenizer."""

from __future__ import annotations

import functools
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.artifacts import Artifact, Metrics
from pipeline.config import StrictModel
from pipeline.errors import DataError
from pipeline.output import Output
from pipeline.runtime import BoundRuntime
from pipeline.units import Unit, Worker

if TYPE_CHECKING:
    import numpy as np

    from stages.data.shards import Sample, Shard

BATCHES_AHEAD = 2
"""Decoded batches that wait for the network."""

# Shapes: N token rows, B batch, H W C picture, T tokens.


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


def encode(
    config: EncodeConfig, *, shards: Artifact, tokenizer: Artifact, output: Output, runtime: BoundRuntime
) -> Metrics:
    """Encode every shard as a unit of its own: a grown corpus costs only its new shards."""
    from stages.data.shards import open_split
    from stages.models.vocabulary import TokenCorpus

    dataset = shards.read_json("dataset.json")
    space = _token_space(tokenizer, dataset)
    metadata = {name: json.dumps(value) for name, value in space.items()} | {"tokenizer": tokenizer.digest}
    units = [
        _unit(config, shard, tokenizer.digest, metadata, num_variants=2 if config.flips else 1)
        for shard in open_split(shards, "train")
    ] + [_unit(config, shard, tokenizer.digest, metadata, num_variants=1) for shard in open_split(shards, "val")]
    folder = tokenizer.local("model.safetensors").parent
    tokenizer.local("config.json")
    started = time.monotonic()
    records = output.map_units(functools.partial(load_encoder, config, folder), units, runtime, label="encode")
    seconds = time.monotonic() - started

    def total(key: str, prefix: str = "") -> int:
        return sum(record.counts[key] for record in records if record.name.startswith(prefix))

    used = functools.reduce(lambda codes, record: codes | int(record.counts["codes"], 16), records, 0)
    corpus = TokenCorpus(**space, num_train=total("rows", "train-"), num_val=total("rows", "val-"))
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


def load_encoder(config: EncodeConfig, tokenizer_folder: Path, device: str) -> Worker:
    """Load the tokenizer once; return the worker that encodes one shard at a time."""
    from stages.models.tokenizer import Tokenizer

    model = Tokenizer.load(tokenizer_folder, device)
    return functools.partial(encode_shard, functools.partial(_encode_batch, model, config, device), config, model)


def encode_shard(
    encode_batch: Callable[[np.ndarray], np.ndarray], config: EncodeConfig, tokenizer: Any, unit: Unit, folder: Path
) -> dict[str, Any]:
    """Write NAME.parquet, a row for each variant of each picture of a shard; count pictures, rows and codes used."""
    import numpy as np

    from stages.data.shards import ShardReader
    from stages.data.tables import write_tokens

    reader = ShardReader(unit.payload["shard"])
    rows = [(i, variant) for i in range(len(reader)) for variant in range(unit.recipe["num_variants"])]

    def images(start: int) -> np.ndarray:
        batch = rows[start : start + config.batch_size]
        pictures = [_picture(reader[i], variant, tokenizer.image_size, tokenizer.channels) for i, variant in batch]
        # The order of additions in a convolution depends on the batch's shape: one shape, the same bits everywhere.
        pictures += [pictures[-1]] * (config.batch_size - len(batch))
        return np.stack(pictures)

    tokens = [np.empty((0, tokenizer.grid[0] * tokenizer.grid[1]), dtype=np.int64)]
    tokens += [encode_batch(batch) for batch in _made_ahead(images, range(0, len(rows), config.batch_size))]
    tokens_NT = np.concatenate(tokens)[: len(rows)]
    described = [reader.table[i] for i, _ in rows]
    write_tokens(
        folder / f"{unit.name}.parquet",
        keys=[row["key"] for row in described],
        labels=[row["label"] for row in described],
        captions=[row["caption"] for row in described],
        variants=[variant for _, variant in rows],
        tokens_NT=tokens_NT,
        metadata=unit.payload["metadata"],
    )
    used = functools.reduce(lambda codes, code: codes | 1 << int(code), np.unique(tokens_NT), 0)
    return {"pictures": len(reader), "rows": len(rows), "codes": f"{used:x}"}


def _made_ahead(make: Callable[[int], np.ndarray], starts: Iterable[int]) -> Iterator[np.ndarray]:
    """make(start) of each, in order; a thread reads and decodes the next ones while the network is busy."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming: deque[Future[np.ndarray]] = deque()
        for start in starts:
            coming.append(thread.submit(make, start))
            if len(coming) > BATCHES_AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _encode_batch(model: Any, config: EncodeConfig, device: str, images_BHWC: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W, C] -> tokens [B, T]."""
    import torch

    from stages.data.images import to_model_range
    from stages.models.cpu import prepare_cpu

    prepare_cpu(config.threads)
    low_precision = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.precision == "bf16")
    with torch.inference_mode(), low_precision:
        indices_BHW = model.encode(to_model_range(images_BHWC).to(device))
    tokens_BT: np.ndarray = indices_BHW.flatten(1).cpu().numpy()
    return tokens_BT


def _picture(sample: Sample, variant: int, size: int, channels: int) -> np.ndarray:
    """The centre of a stored picture as uint8 [size, size, C]; variant 1 is its mirror image."""
    from stages.data.images import decode_image

    image_HWC = decode_image(sample.image, channels)
    spare_y, spare_x = image_HWC.shape[0] - size, image_HWC.shape[1] - size
    if min(spare_y, spare_x) < 0:
        raise DataError(
            f"picture {sample.key} is {image_HWC.shape[1]}x{image_HWC.shape[0]}, the tokenizer wants {size}x{size}: "
            "run --stages shard,tokenizer with one image_size"
        )
    top, left = (spare_y + 1) // 2, (spare_x + 1) // 2
    image_HWC = image_HWC[top : top + size, left : left + size]
    return image_HWC[:, ::-1] if variant else image_HWC


def _token_space(tokenizer: Artifact, dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `TokenSpace`, without loading the tokenizer's weights or torch."""
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


def _unit(
    config: EncodeConfig, shard: Shard, tokenizer_digest: str, metadata: dict[str, str], *, num_variants: int
) -> Unit:
    return Unit(
        name=shard.name,
        recipe={
            "shard": shard.digest,
            "tokenizer": tokenizer_digest,
            "classes": metadata["classes"],
            "num_variants": num_variants,
            "batch_size": config.batch_size,
            "threads": config.threads,
            "precision": config.precision,
        },
        payload={"shard": shard, "metadata": metadata},
    )
