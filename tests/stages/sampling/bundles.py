"""Finished tiny runs and bundles whose priors are told this and that, for tests of generators."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.artifacts import Artifact
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from stages.data.box_codes import BoxCodes
from stages.data.captions import learn_captions
from stages.encode import EncodeWork, encode
from stages.models.priors.configs import GPTConfig, PriorDescription
from stages.models.priors.load import build_prior
from stages.models.tokenizer import Tokenizer
from stages.models.tokenizer_config import EMAQuantizerConfig, LightBackboneConfig, TokenizerModelConfig
from stages.models.vocabulary import Segment
from tests.stages.tiny import TinyConfig, _prior, tiny_shards, tiny_tokenizer

CLASSES = ("cats", "dogs", "owls")


def tiny_run(workdir: Path, *, condition: tuple[Any, ...] = ("class", "caption"), seed: int = 0) -> dict[str, Artifact]:
    """Shards, tokenizer, tokens and a prior that was trained on them; its condition is the tokens'."""
    shards, tokenizer = tiny_shards(workdir), tiny_tokenizer(workdir, seed=seed)
    inputs = {"shards": shards, "tokenizer": tokenizer}
    encoding = EncodeWork(batch_size=4, condition=condition)
    tokens = run_stage(
        Stage("encode", encode, encoding, inputs),  # type: ignore[arg-type]
        inputs,
        str(workdir),
        LocalRuntime(),
    )

    def train(config: TinyConfig, *, tokens: Artifact, output: Any, runtime: Any) -> dict[str, int]:
        return _prior(config, output=output, runtime=runtime)

    segments = tuple(Segment.model_validate(segment) for segment in tokens.read_json("tokens.json")["condition"])
    config = TinyConfig(seed=seed, tokenizer_digest=tokenizer.digest, condition=segments)
    prior = run_stage(
        Stage("prior", train, config, {"tokens": tokens}), {"tokens": tokens}, str(workdir), LocalRuntime()
    )  # type: ignore[dict-item]
    return {"tokenizer": tokenizer, "tokens": tokens, "prior": prior}


def random_tokenizer(folder: Path, *, image_size: int = 16, channels: int = 3, labels: int | None = None) -> None:
    """A light tokenizer of 4x4 or other grids of 8x8 pixels; its codes are those of random pictures."""
    torch.manual_seed(1)
    backbone = LightBackboneConfig(channels=(8, 8, 16), residual_blocks=(0, 1, 0), norm_groups=4)
    config = TokenizerModelConfig(backbone=backbone, quantizer=EMAQuantizerConfig(num_codes=20, dim=4), labels=labels)
    model = Tokenizer(config, image_size=image_size, channels=channels)
    levels = labels or 256
    x_BHW = torch.randint(levels, (5, 4, 4)).repeat_interleave(4, 1).repeat_interleave(4, 2) / 127.5 - 1
    with torch.no_grad():
        z_BCHW = model.encode_latents(x_BHW[:, None].expand(-1, channels, -1, -1))
        model.quantize.embedding.weight.copy_(z_BCHW.permute(0, 2, 3, 1).reshape(20, 4))
    folder.mkdir(parents=True)
    model.save(folder)


def random_prior(
    folder: Path, condition: tuple[Segment, ...], *, grid: int = 2, std: float = 0.4, **model: Any
) -> None:
    """A GPT far from uniform over the tokens of `random_tokenizer`."""
    description = PriorDescription(
        tokenizer="",
        codebook_size=20,
        grid=(grid, grid),
        classes=CLASSES,
        image_size=8 * grid,
        channels=3,
        condition=condition,
        model=GPTConfig(num_layers=1, num_heads=2, width=16, **model),
    )
    torch.manual_seed(0)
    prior = build_prior(description)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=std)
    folder.mkdir(parents=True)
    prior.save(folder, description)


def class_bundle(folder: Path, *, grid: int = 4, std: float = 0.4, **model: Any) -> Path:
    """tokenizer/ and prior/ alone, as an import leaves them; the prior is told the class."""
    random_tokenizer(folder / "tokenizer", image_size=8 * grid)
    random_prior(folder / "prior", (Segment(kind="class", length=1, size=3),), grid=grid, std=std, **model)
    return folder


def map_bundle(folder: Path, kind: str, *, channels: int = 1, labels: int | None = None) -> Path:
    """A prior that is told a map of 2x2 tokens and nothing else."""
    random_tokenizer(folder / "tokenizer")
    random_tokenizer(folder / "cond_tokenizer", channels=channels, labels=labels)
    random_prior(folder / "prior", (Segment(kind=kind, length=4, size=20, grid=(2, 2), tokenizer="x"),))
    return folder


def words_and_boxes(folder: Path, **model: Any) -> Path:
    """A prior that is told captions and boxes."""
    random_tokenizer(folder / "tokenizer")
    text = learn_captions(["a red cat", "a blue dog", "an owl"], vocabulary_size=280)
    codes = BoxCodes(classes=("cat", "dog"), resolution=4)
    from stages.data.captions import Captions

    caption = Segment(kind="caption", length=6, size=len(Captions(text)))
    random_prior(folder / "prior", (caption, Segment(kind="boxes", length=6, size=codes.size)), **model)
    (folder / "captions.json").write_text(text)
    (folder / "boxes.json").write_text(codes.model_dump_json())
    return folder


def blocks(side: int = 32, seed: int = 0) -> np.ndarray:
    """A picture of random 4x4 blocks: uint8 [side, side, 3]."""
    coarse_HWC = np.random.default_rng(seed).integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
    return coarse_HWC.repeat(4, 0).repeat(4, 1)
