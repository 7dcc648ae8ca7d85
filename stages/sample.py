"""Stage sample: draws pictures from the prior, decodes them, and lays them out for people and for evaluation."""

from __future__ import annotations

import functools
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from pipeline.artifacts import Artifact, Metrics
from pipeline.config import StrictModel
from pipeline.errors import StageError
from pipeline.manifest import UnitRecord
from pipeline.output import Output
from pipeline.runtime import BoundRuntime
from pipeline.units import Unit, Worker

if TYPE_CHECKING:
    from stages.models.priors.configs import PriorDescription
    from stages.sampling.generator import Generator
    from stages.sampling.given import Given
    from stages.sampling.overview import DrawTold

NOT_IN_RECIPES = {"num_samples", "samples_per_unit", "classes", "captions", "samples_per_condition"}
"""Keys that a unit's own ids, classes and conditions stand for."""


class SampleConfig(StrictModel):
    """What is drawn, and how."""

    num_samples: int = Field(default=256, ge=1)
    """Pictures to draw. Raising it draws only the new ones."""
    classes: tuple[str, ...] | None = None
    """Names of the classes to draw, in turn, where the prior knows nothing else. Default: all that it knows."""
    captions: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Texts to draw, in turn, where the prior knows captions; its other conditions are not given then. Default: a
    prior that knows more than classes draws from the conditions of held-out pictures."""
    samples_per_condition: int = Field(default=4, ge=1)
    """Samples in a row of each caption, or of each held-out picture's conditions. For distances between samples and
    real pictures 1 is best: more of them are different."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Together with a sample's id it decides all of the sample's noise."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides the logits: below 1 the likelier codes gain."""
    top_k: int | None = Field(default=None, ge=1)
    """Draw from the k likeliest codes alone. Default: from all."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Draw from the likeliest codes that together exceed this probability. Default: from all."""
    guidance: float = Field(default=1.0, ge=0)
    """Classifier-free guidance: above 1 the condition shows more and variety shrinks; 1 is none; 0 ignores it."""
    batch_size: int = Field(default=64, ge=1)
    """Pictures that are drawn at once; a smaller last batch is padded to it. Changes last bits."""
    samples_per_unit: int = Field(default=64, ge=1)
    """Pictures of a unit: what a crash can cost, and what workers share out. A multiple of batch_size pads nothing."""
    threads: int = Field(default=1, ge=1)
    """Torch threads of a worker on a CPU; more workers use more cores as well, and better. Changes last bits."""

    @field_validator("classes")
    @classmethod
    def _classes_are_named_once(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if classes is not None and (not classes or len(set(classes)) != len(classes)):
            raise ValueError("name each class once; leave the key out for all classes")
        return classes


def sample(
    config: SampleConfig,
    *,
    tokenizer: Artifact,
    prior: Artifact,
    tokens: Artifact | None = None,
    maps: Artifact | None = None,
    output: Output,
    runtime: BoundRuntime,
) -> Metrics:
    """Draw the samples in units of fixed id ranges, then a grid and a summary of all of them.

    Conditions other than classes are taken from `tokens`; `maps` shows the spatial ones beside the samples.
    """
    from stages.models.priors.configs import PriorDescription
    from stages.sampling.choice import check_choice, chosen_classes, only_classes

    described = PriorDescription.model_validate(prior.read_json("config.json"))
    if tokenizer.digest != described.tokenizer:
        raise StageError(
            f"the prior learned tokens of tokenizer {described.tokenizer[:12]}, this one is {tokenizer.digest[:12]}: "
            "run --stages encode,prior"
        )
    check_choice(described, classes=config.classes, captions=config.captions, guidance=config.guidance)
    classes = chosen_classes(described, config.classes)
    given = None if only_classes(described) else _given(config, described, tokens)
    if config.num_samples % config.samples_per_unit:
        output.warn(
            f"num_samples {config.num_samples} is not a multiple of samples_per_unit {config.samples_per_unit}: "
            f"raising it later draws the last {config.num_samples % config.samples_per_unit} again"
        )
    make_worker = functools.partial(load_generator, config, _local_folder(tokenizer), _local_folder(prior))
    units = plan_units(config, classes, {"tokenizer": tokenizer.digest, "prior": prior.digest}, given)
    started = time.monotonic()
    records = output.map_units(make_worker, units, runtime, label="sample")
    seconds = time.monotonic() - started
    if output.units_reused < len(records):
        drawn = config.num_samples * (1 - output.units_reused / len(records))
        output.notes["samples_per_second"] = round(drawn / seconds, 2)
    bits = -sum(record.counts["log_likelihood"] for record in records) / math.log(2)
    metrics: Metrics = {
        "samples": config.num_samples,
        "classes": len(classes),
        "bits_per_token": bits / config.num_samples / described.num_tokens,
    }
    draw_told = _draw_told(described, given, tokens, maps) if given is not None and tokens is not None else None
    _write_grid(output, config, records, classes, given, draw_told)
    _write_summary(output, config, described, classes, metrics)
    return metrics


def plan_units(
    config: SampleConfig, classes: Sequence[str], digests: dict[str, str], given: Given | None = None
) -> list[Unit]:
    """Cut the ids into aligned blocks. A recipe knows its own ids and never how many samples there are in all."""
    drawing = config.model_dump(mode="json", exclude=NOT_IN_RECIPES)
    units = []
    for first in range(0, config.num_samples, config.samples_per_unit):
        count = min(config.samples_per_unit, config.num_samples - first)
        recipe = {**drawing, **digests, "classes": list(classes), "first_id": first, "count": count}
        own = None
        if given is not None:
            own = given.of_samples(range(first, first + count), config.samples_per_condition)
            recipe["given"] = own.digest
        units.append(Unit(f"sample-{first // config.samples_per_unit:06d}", recipe, own))
    return units


def load_generator(config: SampleConfig, tokenizer_folder: Path, prior_folder: Path, device: str) -> Worker:
    """Load tokenizer and prior once; return the worker that draws one unit at a time."""
    from stages.sampling.generator import Generator

    return functools.partial(draw_unit, config, Generator.of_folders(tokenizer_folder, prior_folder, device))


def draw_unit(config: SampleConfig, generator: Generator, unit: Unit, folder: Path) -> dict[str, Any]:
    """Write the unit's pictures as a shard and its table as NAME.parquet; count samples and sum log-likelihoods."""
    from stages.data.images import encode_image
    from stages.data.shards import Sample, write_shard
    from stages.data.tables import write_table
    from stages.models.cpu import prepare_cpu
    from stages.sampling.filters import LogitFilter
    from stages.sampling.noise import draws_of

    prepare_cpu(config.threads)
    classes, first = unit.recipe["classes"], unit.recipe["first_id"]
    ids = list(range(first, first + unit.recipe["count"]))
    given: Given | None = unit.payload
    labels = [generator.classes.index(classes[i % len(classes)]) if classes else -1 for i in ids]
    drawn = generator.draw(
        generator.of_classes(labels) if given is None else given.condition_NC,
        draws_of(config.seed, ids),
        logit_filter=LogitFilter(config.temperature, config.top_k, config.top_p),
        guidance=config.guidance,
        batch_size=config.batch_size,
    )
    write_shard(
        folder,
        unit.name,
        [
            Sample(key=key, label=label, caption=caption, group=key, image=encode_image(picture_HWC, "png"))
            for key, label, caption, picture_HWC in zip(
                drawn.keys, drawn.labels, given.captions if given else drawn.classes, drawn.pictures_NHWC, strict=True
            )
        ],
    )
    write_table(
        folder / f"{unit.name}.parquet",
        drawn.table() | (given.columns() if given else {}),
        {"tokenizer": unit.recipe["tokenizer"]},
    )
    return {"samples": len(ids), "log_likelihood": float(drawn.log_likelihood_N.sum())}


def _given(config: SampleConfig, prior: PriorDescription, tokens: Artifact | None) -> Given:
    """The conditions to draw from, in turn."""
    from stages.data.captions import Captions
    from stages.sampling.given import Given

    assert tokens is not None, "the graph gives the tokens of a prior that knows more than classes"
    if config.captions is None:
        return Given.held_out(tokens)
    captions = Captions(tokens.local("captions.json").read_text())
    return Given.of_captions(config.captions, prior.vocabulary, captions)


def _draw_told(prior: PriorDescription, given: Given, tokens: Artifact, maps: Artifact | None) -> DrawTold:
    """What draws the condition of a number."""
    from stages.data.condition_pictures import ConditionPictures

    pictures = ConditionPictures.of(tokens, maps)
    boxes_NL = given.values(prior.vocabulary, "boxes")

    def draw(number: int, side: int) -> list[Any]:
        target = (given.keys[number], given.variants[number])
        return pictures.draw(target, None if boxes_NL is None else boxes_NL[number].tolist(), side)

    return draw


def _local_folder(artifact: Artifact) -> Path:
    artifact.local("config.json")
    return artifact.local("model.safetensors").parent


def _write_grid(
    output: Output,
    config: SampleConfig,
    records: Sequence[UnitRecord],
    classes: Sequence[str],
    given: Given | None,
    draw_told: DrawTold | None,
) -> None:
    from stages.sampling.overview import class_grid, condition_grid, sample_reader

    read = sample_reader(output, records, config.samples_per_unit)
    if given is None or draw_told is None:
        grid = class_grid(read, config.num_samples, classes)
    else:
        grid = condition_grid(read, config.num_samples, given, config.samples_per_condition, draw_told)
    output.write("grid.png", grid)


def _write_summary(
    output: Output, config: SampleConfig, prior: PriorDescription, classes: Sequence[str], metrics: Metrics
) -> None:
    counts = Counter(classes[i % len(classes)] for i in range(config.num_samples)) if classes else {}
    output.write_json(
        "samples.json",
        {
            **config.model_dump(mode="json", exclude={"samples_per_unit"}),
            "classes": dict(counts),
            "bits_per_token": metrics["bits_per_token"],
            "tokenizer": prior.tokenizer,
            "image_size": prior.image_size,
            "channels": prior.channels,
            "grid": list(prior.grid),
        },
    )
