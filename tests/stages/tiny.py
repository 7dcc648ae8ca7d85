"""Tiny finished artifacts with random pictures and random weights, for tests of the stages behind them."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts import Artifact
from pipeline.config import StrictModel
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from pipeline.units import Unit, Worker
from stages.models.vocabulary import Segment

IMAGE_SIZE = 16


class TinyConfig(StrictModel):
    """What the tiny artifacts are made of."""

    pictures: tuple[int, ...] = (5, 3)
    """Pictures of each training shard."""
    classes: tuple[str, ...] = ("cats", "dogs", "owls")
    """Class names."""
    captions: bool = True
    """Whether pictures have captions."""
    seed: int = 0
    """Seed of the random weights."""
    condition_dropout: float = 0.1
    """Of the prior."""
    tokenizer_digest: str = ""
    """Of the tokenizer whose tokens the prior is for."""
    condition: tuple[Segment, ...] | None = None
    """What the prior is told. Default: the class."""
    image_size: int = IMAGE_SIZE
    """Side of the pictures that the tokenizer is for."""


def tiny_shards(workdir: Path, **options: Any) -> Artifact:
    """Training shards of `pictures` pictures each and one validation shard of 2."""
    return _make("shard", _shards, workdir, **options)


def tiny_tokenizer(workdir: Path, **options: Any) -> Artifact:
    """A light tokenizer of 16x16 RGB pictures: 2x2 tokens of 20 codes."""
    return _make("tokenizer", _tokenizer, workdir, **options)


def tiny_prior(workdir: Path, tokenizer: Artifact, **options: Any) -> Artifact:
    """A GPT over the tokens of `tiny_tokenizer`, far from uniform."""
    return _make("prior", _prior, workdir, tokenizer_digest=tokenizer.digest, **options)


def _make(name: str, work: Any, workdir: Path, **options: Any) -> Artifact:
    return run_stage(Stage(name, work, TinyConfig(**options), {}), {}, str(workdir), LocalRuntime())


def _shards(config: TinyConfig, *, output: Any, runtime: Any) -> dict[str, int]:
    counts = {f"train-{n:06d}": count for n, count in enumerate(config.pictures)} | {"val-000000": 2}
    units = [
        Unit(name, {"name": name, "count": count, "classes": len(config.classes), "captions": config.captions})
        for name, count in counts.items()
    ]
    output.map_units(_shard_worker, units, runtime, label="shard")
    output.write_json(
        "dataset.json",
        {
            "image_size": IMAGE_SIZE,
            "channels": 3,
            "classes": list(config.classes),
            "num_train": sum(config.pictures),
            "num_val": 2,
            "attribution": "",
        },
    )
    return {}


def _shard_worker(device: str) -> Worker:
    return _write_pictures


def _write_pictures(unit: Unit, folder: Path) -> dict[str, int]:
    from stages.data.images import encode_image
    from stages.data.shards import Sample, write_shard

    samples = []
    for n in range(unit.recipe["count"]):
        rng = np.random.default_rng([n, *unit.name.encode()])
        coarse_HWC = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = encode_image(coarse_HWC.repeat(IMAGE_SIZE // 4, 0).repeat(IMAGE_SIZE // 4, 1), "png")
        key = f"{unit.name}-{n}"
        samples.append(
            Sample(
                key, n % max(1, unit.recipe["classes"]), f"picture {n}" if unit.recipe["captions"] else "", key, image
            )
        )
    return write_shard(folder, unit.name, samples)


def _tokenizer(config: TinyConfig, *, output: Any, runtime: Any) -> dict[str, int]:
    import torch

    from stages.models.tokenizer import Tokenizer
    from stages.models.tokenizer_config import EMAQuantizerConfig, LightBackboneConfig, TokenizerModelConfig

    torch.manual_seed(config.seed)
    model = Tokenizer(
        TokenizerModelConfig(
            backbone=LightBackboneConfig(channels=(8, 8, 16), residual_blocks=(0, 1, 0), norm_groups=4),
            quantizer=EMAQuantizerConfig(num_codes=20, dim=4),
        ),
        image_size=config.image_size,
        channels=3,
    )
    with torch.no_grad():
        x_BCHW = 2 * torch.rand(5, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3) - 1
        z_BCHW = model.quant_conv(model.encoder(x_BCHW))
        model.quantize.embedding.weight.copy_(z_BCHW.permute(0, 2, 3, 1).reshape(20, 4))  # so that codes are used
    _write_files(output, model.save)
    return {}


def _prior(config: TinyConfig, *, output: Any, runtime: Any) -> dict[str, int]:
    import torch

    from stages.models.priors.configs import GPTConfig, PriorDescription
    from stages.models.priors.load import build_prior

    told: dict[str, Any] = {} if config.condition is None else {"condition": config.condition}
    description = PriorDescription(
        **told,
        tokenizer=config.tokenizer_digest,
        codebook_size=20,
        grid=(2, 2),
        classes=config.classes,
        image_size=IMAGE_SIZE,
        channels=3,
        model=GPTConfig(num_layers=1, num_heads=2, width=16, condition_dropout=config.condition_dropout),
    )
    torch.manual_seed(config.seed)
    model = build_prior(description)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    _write_files(output, functools.partial(model.save, description=description))
    return {}


def _write_files(output: Any, save: Any) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        for path in sorted(Path(folder).iterdir()):
            output.write(path.name, path.read_bytes())
