"""A small made-up world of finished artifacts (shards, tokenizer, tokens, prior, samples) for the evaluate stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import binary_fill_holes

from pipeline.artifacts import Artifact, Metrics
from pipeline.config import StrictModel
from pipeline.output import Output
from pipeline.runner import run_stage
from pipeline.runtime import BoundRuntime, LocalRuntime
from pipeline.stage import Stage
from pipeline.units import Unit
from stages.data.condition_config import EdgesCondition
from stages.data.images import encode_image, to_model_range
from stages.data.loader import load_all
from stages.data.shards import Sample, open_split, write_shard
from stages.data.tables import write_table, write_tokens
from stages.maps import make_maps
from stages.models.priors.configs import GPTConfig, PriorDescription
from stages.models.priors.load import build_prior
from stages.models.tokenizer import Tokenizer
from stages.models.tokenizer_config import EMAQuantizerConfig, LightBackboneConfig, TokenizerModelConfig
from stages.models.vocabulary import TokenSpace, Vocabulary

BACKBONE = LightBackboneConfig(channels=(16, 16, 32), residual_blocks=(0, 0, 0), norm_groups=8)
TOKENIZER = TokenizerModelConfig(backbone=BACKBONE, quantizer=EMAQuantizerConfig(num_codes=16, dim=8))


class World(StrictModel):
    """What the artifacts hold. Real labels are mixed by `shares`, samples evenly."""

    classes: tuple[str, ...] = ("discs", "squares", "stripes")
    shares: tuple[float, ...] = (0.6, 0.3, 0.1)
    train: tuple[int, ...] = (30, 30)
    val: tuple[int, ...] = (40,)
    samples: tuple[int, ...] = (18, 18)
    sample_noise: float = 60.0
    size: int = 32
    channels: int = 3
    history: bool = True
    group_size: int = 1
    told: bool = False
    """Whether samples were drawn from the edges of held-out pictures, and show them."""
    selected: str = ""
    """Kind of the scorer that chose the samples; none where this is empty."""
    tokenizer_seed: int = 0
    """Of its weights, which no training ever touches."""


def draw(rng: np.random.Generator, label: int, world: World, *, noise: float = 4.0) -> np.ndarray:
    """A disc, a square or stripes in a random colour and place on white: uint8 [H, W, C]."""
    y, x = np.mgrid[: world.size, : world.size]
    at_y, at_x = rng.uniform(0.35, 0.65, 2) * world.size
    radius = rng.uniform(0.2, 0.35) * world.size
    inside = (
        (y - at_y) ** 2 + (x - at_x) ** 2 < radius**2,
        np.maximum(abs(y - at_y), abs(x - at_x)) < radius,
        (x + y + int(at_x)) // 4 % 2 == 0,
    )[label % 3]
    picture = np.where(inside[:, :, None], rng.uniform(0, 200, world.channels), 255.0)
    return (picture + rng.normal(0, noise, picture.shape)).clip(0, 255).astype(np.uint8)


def _shard_worker(world: World, device: str, unit: Unit, folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(unit.recipe["seed"])
    sampled = unit.name.startswith("sample")
    pictures = []
    for index in range(unit.recipe["count"]):
        label = -1
        if world.classes:
            label = index % len(world.classes) if sampled else int(rng.choice(len(world.shares), p=world.shares))
        image = encode_image(draw(rng, label, world, noise=world.sample_noise if sampled else 4.0), "png")
        caption = world.classes[label] if world.classes else ""
        group = f"{unit.name}-{index // world.group_size}"
        pictures.append(Sample(f"{unit.name}-{index}", label, caption, group, image))
    return {"samples": write_shard(folder, unit.name, pictures)["samples"]}


def _write_pictures(world: World, output: Output, runtime: BoundRuntime, splits: Mapping[str, tuple[int, ...]]) -> None:
    units = [
        Unit(
            f"{split}-{index:06d}",
            {"seed": [len(split), index], "count": count, "world": world.model_dump(mode="json")},
        )
        for split, counts in splits.items()
        for index, count in enumerate(counts)
    ]
    output.map_units(lambda device: partial(_shard_worker, world, device), units, runtime, label="made up")


def shard(config: World, *, output: Output, runtime: BoundRuntime) -> Metrics:
    """Real pictures."""
    _write_pictures(config, output, runtime, {"train": config.train, "val": config.val})
    dataset = {
        "image_size": config.size,
        "channels": config.channels,
        "classes": list(config.classes),
        "attribution": "Shapes by <nobody>, CC0",
        "num_train": sum(config.train),
        "num_val": sum(config.val),
        "class_counts": {name: sum(config.train) + sum(config.val) for name in config.classes},
        "rejects": 0,
    }
    output.write_json("dataset.json", dataset)
    output.write("contact_sheet.png", encode_image(np.full((8, 8, 3), 200, np.uint8), "png"))
    output.warn("made up: nothing here is real")
    return {}


def tokenizer(config: World, *, shards: Artifact, output: Output, runtime: BoundRuntime) -> Metrics:
    """An untrained tokenizer, and the history of a training that never was."""
    torch.manual_seed(config.tokenizer_seed)
    model = Tokenizer(TOKENIZER, image_size=config.size, channels=config.channels)
    with output.writing("model.safetensors") as weights, output.writing("config.json") as description:
        model.save(weights.parent)
        description.parent.joinpath("config.json").write_text(model.description())
    rows = [
        {"step": step, "train/reconstruction": 1 / step, "train/codes_used": 16.0, "validation/psnr": 10 + step / 10}
        for step in range(1, 60 if config.history else 1)
    ]
    output.write("history.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    return {}


def encode(config: World, *, shards: Artifact, tokenizer: Artifact, output: Output, runtime: BoundRuntime) -> Metrics:
    """Tokens of all pictures, each twice: as it is and mirrored."""
    model = Tokenizer.load(tokenizer.local("model.safetensors").parent)
    sources = {shard.name: shard for split in ("train", "val") for shard in open_split(shards, split)}

    def worker(unit: Unit, folder: Path) -> dict[str, Any]:
        pictures, labels, keys = load_all([sources[unit.name]], config.channels)
        both = [to_model_range(np.ascontiguousarray(side)) for side in (pictures, pictures[:, :, ::-1])]
        tokens = torch.stack([model.encode(x).flatten(1) for x in both], dim=1).flatten(0, 1).numpy()
        repeated: dict[str, Any] = {
            "keys": np.repeat(keys, 2).tolist(),
            "captions": [""] * len(tokens),
            "labels": np.repeat(labels, 2),
        }
        path = folder / f"{unit.name}.parquet"
        vocabulary = Vocabulary.by_class(TOKENIZER.quantizer.num_codes, len(config.classes))
        condition = vocabulary.condition(torch.from_numpy(repeated["labels"])).numpy()
        write_tokens(
            path, **repeated, variants=np.tile([0, 1], len(keys)), tokens_NT=tokens, condition_NC=condition, metadata={}
        )
        return {"pictures": len(keys), "rows": len(tokens)}

    recipe = {"shards": shards.digest, "tokenizer": tokenizer.digest}
    output.map_units(lambda _: worker, [Unit(name, recipe) for name in sources], runtime, label="made up")
    space = {
        "tokenizer": tokenizer.digest,
        "codebook_size": TOKENIZER.quantizer.num_codes,
        "grid": [config.size // 8, config.size // 8],
        "classes": list(config.classes),
        "image_size": config.size,
        "channels": config.channels,
    }
    output.write_json("tokens.json", {**space, "num_train": 2 * sum(config.train), "num_val": 2 * sum(config.val)})
    return {}


def prior(config: World, *, tokens: Artifact, output: Output, runtime: BoundRuntime) -> Metrics:
    """An untrained prior."""
    torch.manual_seed(1)
    space = {name: value for name, value in tokens.read_json("tokens.json").items() if not name.startswith("num_")}
    gpt = GPTConfig(num_layers=1, num_heads=2, width=16)
    description = PriorDescription.of(gpt, TokenSpace.model_validate(space))
    output.write("model.safetensors", build_prior(description).weights())
    output.write_json("config.json", description.model_dump(mode="json"))
    rows = [{"step": step, "train/bits_per_token": 4.0 - step / 100} for step in range(1, 60 if config.history else 1)]
    output.write("history.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    return {}


def sample(
    config: World,
    *,
    tokenizer: Artifact,
    prior: Artifact,
    maps: Artifact | None = None,
    output: Output,
    runtime: BoundRuntime,
) -> Metrics:
    """Noisy shapes, evenly many of each class; or shapes whose edges are those of held-out pictures."""
    if maps is not None:
        edges, _, keys = load_all(open_split(maps, "val"), 1)
        worker = partial(_drawn_from, config, edges, keys)
        output.map_units(lambda device: worker, [Unit("sample-000000", {"maps": maps.digest})], runtime, label="told")
    else:
        _write_pictures(config, output, runtime, {"sample": config.samples})
    selection: dict[str, Any] = {}
    if config.selected:
        select = {"kind": config.selected, "keep": 1, "candidates": 8, "min_score": 0.5}
        shares = {"kept_share": 0.125, "accepted_share": 0.25, "kept_below": 3}
        selection = {"select": select, "score": 0.75, "score_of_all": 0.5, **shares}
        output.write("grid.png", encode_image(np.zeros((8, 8, 3), np.uint8), "png"))
    output.write_json("samples.json", {"tokenizer": tokenizer.digest, **selection})
    return {}


def _drawn_from(world: World, edges: np.ndarray, keys: list[str], unit: Unit, folder: Path) -> dict[str, Any]:
    """Every held-out picture's edges, filled: two samples of each."""
    pictures = []
    for number, (edge_HWC, key) in enumerate(zip(edges, keys, strict=True)):
        filled = binary_fill_holes(edge_HWC[:, :, 0] > 127)
        picture = np.where(filled[:, :, None], 60, 240).astype(np.uint8).repeat(world.channels, axis=2)
        pictures += [Sample(f"s{number}-{copy}", -1, "", key, encode_image(picture, "png")) for copy in (0, 1)]
    write_table(
        folder / f"{unit.name}.parquet",
        {"condition_key": [sample.group for sample in pictures], "condition_variant": [0] * len(pictures)},
    )
    return {"samples": write_shard(folder, unit.name, pictures)["samples"]}


def make(workdir: Path, world: World | None = None) -> dict[str, Artifact]:
    """All inputs of the evaluate stage."""
    world = world or World()
    made: dict[str, Artifact] = {}

    def run(name: str, work: Callable[..., Metrics], **inputs: Artifact) -> Artifact:
        stage = Stage(name, work, world, inputs)  # type: ignore[arg-type]  # run_stage takes finished inputs
        return run_stage(stage, inputs, str(workdir), LocalRuntime())

    made["shards"] = run("shard", shard)
    made["tokenizer"] = run("tokenizer", tokenizer, shards=made["shards"])
    made["tokens"] = run("encode", encode, shards=made["shards"], tokenizer=made["tokenizer"])
    made["prior"] = run("prior", prior, tokens=made["tokens"])
    given: dict[str, Artifact] = {}
    if world.told:
        stage = Stage("maps", make_maps, EdgesCondition(), {"shards": made["shards"]})  # type: ignore[dict-item]
        given["maps"] = made["maps"] = run_stage(stage, {"shards": made["shards"]}, str(workdir), LocalRuntime())
    made["samples"] = run("sample", sample, **given, tokenizer=made["tokenizer"], prior=made["prior"])
    return made
