"""Stage evaluate: measures reconstructions and samples against held-out pictures, and writes the report."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipeline.artifacts import Artifact, Metrics
from pipeline.config import StrictModel
from pipeline.errors import ConfigError, DataError, StageError
from pipeline.manifest import UnitRecord
from pipeline.output import Output
from pipeline.storage import Folder
from pipeline.units import Unit

if TYPE_CHECKING:
    from pipeline.runtime import BoundRuntime
    from pipeline.units import Worker
    from stages.data.shards import Shard
    from stages.metrics.measured import Measured
    from stages.metrics.report.told_and_drawn import ToldAndDrawn

FEWEST = 3
"""Pictures below which there is no distance between two sets, let alone its error."""
CHANCE_UNITS = 2


class EvaluateConfig(StrictModel):
    """What is measured, and how much of it is shown."""

    feature_size: int = Field(96, ge=32, le=1024)
    """Side in pixels that pictures are resized to for the feature network. Larger sees finer detail: 224 is what it
    was trained on, and costs five times as much as 96. Distances of different sizes are not comparable."""
    train_pictures: int = Field(4096, ge=8)
    """Training pictures to compare with, at least: whole shards, evenly spaced, are taken until there are so many."""
    chance_pictures: int = Field(256, ge=8)
    """Pictures decoded from random tokens, which show what the distances of a prior that knows nothing are."""
    batch_size: int = Field(64, ge=1)
    """Pictures a network sees at once. Changes last bits."""
    seed: int = 0
    """Chooses the training pictures of the real-against-real floor and the random tokens, and draws for intervals."""
    shown_per_class: int = Field(10, ge=1)
    """Samples of each class in the report."""
    shown_reconstructions: int = Field(22, ge=1)
    """Reconstructions in the report."""
    shown_neighbours: int = Field(11, ge=1)
    """Samples shown beside their nearest training picture: those that come nearest."""


def evaluate(
    config: EvaluateConfig,
    *,
    shards: Artifact,
    tokenizer: Artifact,
    tokens: Artifact,
    prior: Artifact,
    samples: Artifact,
    maps: Artifact | None = None,
    output: Output,
    runtime: BoundRuntime,
) -> Metrics:
    """Measure units of pictures and tokens, merge them into figures, write report.json and report.html.

    Raises DataError without held-out pictures, StageError where the artifacts do not belong together.
    """
    from stages.data.shards import open_split
    from stages.metrics.listing import Listing
    from stages.metrics.measured import Measured
    from stages.metrics.report.told_and_drawn import told_and_drawn
    from stages.metrics.told import Told

    dataset, corpus = shards.read_json("dataset.json"), tokens.read_json("tokens.json")
    _check(dataset, corpus, tokenizer, prior, samples)
    splits = {split: open_split(shards, split) for split in ("train", "val")}
    splits["train"] = _spread(splits["train"], config.train_pictures, int(dataset["num_train"]))
    splits["sample"] = open_split(samples, "sample")
    # From each training table only its share of as many pictures as are held out: enough to see overfitting.
    num_val = sum(unit.counts["pictures"] for unit, _ in tokens.unit_files(".parquet") if unit.name.startswith("val-"))
    rows = {"val": None, "train": -(-num_val // max(len(splits["train"]), 1))}
    listing = Listing.read(splits, tokens, rows, corpus["codebook_size"])
    units = _units(config, splits, tokenizer, tokens, prior, corpus, rows, listing.codes["train"].tolist())
    told = Told.read(splits, tokens, samples, maps)
    seen = {name: corpus[name] for name in ("image_size", "channels", "tokenizer")}
    units += told.units(splits, {**seen, "batch_size": config.batch_size}, config.seed)
    seeing = {name: corpus[name] for name in ("image_size", "channels")} | {"batch_size": config.batch_size}
    units += told.window_units(splits, seeing, tokenizer.digest)
    worker = functools.partial(load_measurer, tokenizer.folder, prior.folder)
    records = output.map_units(worker, units, runtime, label="evaluate")
    arrays = [(record.name, unit_arrays(output, record)) for record in records]
    measured = Measured.join(arrays, listing)
    obedience = told.figures(measured, arrays, corpus["image_size"], config.seed)
    inputs = {"shards": shards, "tokenizer": tokenizer, "tokens": tokens, "prior": prior, "samples": samples}
    rebuilt = [record for record in records if record.name.startswith("reconstruction-")]
    examples = told_and_drawn(samples, splits["sample"], tokens, maps, dataset["classes"])
    return _write(config, splits, measured, obedience, examples, inputs, output, rebuilt)


def evaluate_incumbent(
    config: EvaluateConfig,
    *,
    shards: Artifact,
    tokenizer: Artifact,
    tokens: Artifact,
    prior: Artifact,
    samples: Artifact,
    maps: Artifact | None = None,
    output: Output,
    runtime: BoundRuntime,
) -> Metrics:
    """Do as `evaluate` with a model of an earlier run: the same inputs, the same bytes.

    One that was trained to say something else (other classes, say) than today's tokens mean cannot be judged by them:
    then incomparable.json says why, in place of the reports.
    """
    from stages.models.vocabulary import TokenSpace

    now, then = tokens.read_json("tokens.json"), prior.read_json("config.json")
    differing = [name for name in TokenSpace.model_fields if now.get(name) != then.get(name)]
    if differing:
        reason = f"{', '.join(differing)} of its prior are not those of today's tokens"
        output.write_json("incomparable.json", {"reason": reason})
        return {"judged": "no"}
    given = {"shards": shards, "tokenizer": tokenizer, "tokens": tokens, "prior": prior, "samples": samples}
    return evaluate(config, **given, maps=maps, output=output, runtime=runtime)


def load_measurer(tokenizer_folder: Folder, prior_folder: Folder, device: str) -> Worker:
    """Return the worker that makes units of evaluation; it loads networks when it first needs them."""
    from stages.metrics.measure import Measurer
    from stages.models.pretrained import fetched

    return Measurer(fetched(tokenizer_folder), fetched(prior_folder), device)


def _check(
    dataset: dict[str, Any], corpus: dict[str, Any], tokenizer: Artifact, prior: Artifact, samples: Artifact
) -> None:
    """Refuse artifacts that were not made from one another."""
    if dataset["num_val"] < FEWEST:
        raise DataError(
            f"{dataset['num_val']} pictures are held out, evaluation needs {FEWEST} and makes sense from some hundred: "
            "raise shard.validation_fraction, or add pictures"
        )
    made_by = {
        "tokens": (corpus["tokenizer"], "encode"),
        "prior": (prior.read_json("config.json")["tokenizer"], "encode,prior"),
        "samples": (samples.read_json("samples.json")["tokenizer"], "sample"),
    }
    for name, (digest, remedy) in made_by.items():
        if digest != tokenizer.digest:
            raise StageError(
                f"the {name} were made with tokenizer {digest[:12]}, this one is {tokenizer.digest[:12]}: "
                f"run --stages {remedy}"
            )
    num_samples = sum(unit.counts["samples"] for unit in samples.units)
    if num_samples < FEWEST:
        raise ConfigError(f"{num_samples} samples cannot be judged: set sample.num_samples to {FEWEST} at least")


def _spread(shards: Sequence[Shard], wanted: int, available: int) -> list[Shard]:
    """Whole shards, evenly spaced over all of them, with about `wanted` pictures."""
    number = min(len(shards), -(-wanted * len(shards) // max(available, 1)))
    return [shards[index * len(shards) // number] for index in range(number)]


def _units(
    config: EvaluateConfig,
    splits: dict[str, list[Shard]],
    tokenizer: Artifact,
    tokens: Artifact,
    prior: Artifact,
    corpus: dict[str, Any],
    rows: Mapping[str, int | None],
    train_codes: list[int],
) -> list[Unit]:
    """All units; a recipe holds what its own bytes depend on, so a new prior measures no real picture again."""
    seeing = {name: corpus[name] for name in ("image_size", "channels")}
    seeing |= {"network": "efficientnet-lite0", "feature_size": config.feature_size, "batch_size": config.batch_size}
    units = [
        Unit(f"features-{shard.name}", {"measure": "features", "shard": shard.digest, **seeing}, {"shard": shard})
        for split in ("train", "val", "sample")
        for shard in splits[split]
    ]
    seeing["tokenizer"] = tokenizer.digest
    for shard in splits["val"]:
        recipe = {"measure": "reconstruction", "shard": shard.digest, **seeing}
        units.append(Unit(f"reconstruction-{shard.name}", recipe, {"shard": shard}))
    for part in range(CHANCE_UNITS):
        count = config.chance_pictures * (part + 1) // CHANCE_UNITS - config.chance_pictures * part // CHANCE_UNITS
        recipe = {
            "measure": "chance",
            "tokens": tokens.digest,
            "num_pictures": count,
            "seed": [config.seed, part],
            **seeing,
        }
        units.append(Unit(f"chance-{part:06d}", recipe, {"code_counts": train_codes}))
    names = {shard.name for split in ("train", "val") for shard in splits[split]}
    for unit, entry in tokens.unit_files(".parquet"):
        if unit.name in names:
            recipe = {
                "measure": "likelihood",
                "prior": prior.digest,
                "tokens": unit.digest,
                "rows": rows[unit.name.partition("-")[0]],
                "batch_size": config.batch_size,
            }
            units.append(Unit(f"likelihood-{unit.name}", recipe, {"table": tokens.file(entry.path)}))
    return units


def _write(
    config: EvaluateConfig,
    splits: dict[str, list[Shard]],
    measured: Measured,
    obedience: dict[str, Any],
    examples: list[ToldAndDrawn],
    inputs: dict[str, Artifact],
    output: Output,
    reconstructions: Sequence[UnitRecord],
) -> Metrics:
    """Judge, write both reports, and return the figures worth a line in the closing table."""
    from stages.metrics.judge import judge
    from stages.metrics.report.page import HowMany, Shown, describe, render
    from stages.metrics.report.provenance import cost_of, total_cost
    from stages.metrics.selected import mark_selected, selection_of

    dataset, num_codes = inputs["shards"].read_json("dataset.json"), len(measured.train_codes_K)
    judgement = judge(measured, num_codes=num_codes, seed=config.seed, obedience=obedience)
    selection = selection_of(inputs["samples"].read_json("samples.json"))
    judgement = dataclasses.replace(judgement, figures=mark_selected(judgement.figures, selection))
    left_out = [dataset["classes"][label] for label in judgement.left_out]
    if left_out:
        output.warn(f"too few samples to judge the classes {', '.join(left_out)}: raise sample.num_samples")
    report = describe(dataset, measured, judgement, left_out, inputs) | ({"selection": selection} if selection else {})
    output.write_json("report.json", report)
    costs = [cost_of(artifact) for artifact in inputs.values()]
    cost = {"stages": costs, "total": total_cost(costs)}
    output.write_json("cost.json", cost, content=False)  # differs between equal runs
    pieces = [unit_arrays(output, record) for record in reconstructions]
    how_many = HowMany(config.shown_per_class, config.shown_reconstructions, config.shown_neighbours)
    shown = Shown.collect(how_many, dataset["classes"], splits, judgement, pieces, examples)
    page = render(report, cost, shown, measured, judgement, inputs, output.warnings)
    output.write("report.html", page.encode(), content=False)
    lead = ("kid_samples", "kid_floor", "psnr", "codebook_used_corpus", "bits_per_token_held_out")
    return {name: report["figures"][name]["value"] for name in lead}


def unit_arrays(output: Output, record: UnitRecord) -> dict[str, Any]:
    """The arrays of a finished unit."""
    from safetensors.numpy import load_file

    with output.store.files(record)[record.files[0].path].held() as path:
        arrays: dict[str, Any] = load_file(path)
    return arrays
