"""Stage evaluate: measures reconstructions and samples against held-out pictures, and writes the report."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipeline.artifacts import Artifact, Metrics, Source
from pipeline.config import StrictModel
from pipeline.errors import ConfigError, DataError
from pipeline.manifest import UnitRecord
from pipeline.output import Output
from pipeline.storage import Folder
from pipeline.units import Unit
from stages.models.inception_weights import (
    STANDARD,
    find_inception,
    how_to_get_it,
    inception_inputs,
    reference_inputs,
)

if TYPE_CHECKING:
    from pipeline.runtime import BoundRuntime
    from pipeline.units import Worker
    from stages.data.shards import Shard
    from stages.metrics.judge import Judgement
    from stages.metrics.listing import Listing
    from stages.metrics.measured import Measured
    from stages.metrics.planned import Planned
    from stages.metrics.report.codes import CodeSheet
    from stages.metrics.report.told_and_drawn import ToldAndDrawn
    from stages.metrics.subject import Subject
    from stages.metrics.told import Told

FEWEST = 3
"""Pictures below which there is no distance between two sets, let alone its error."""


class EvaluateConfig(StrictModel):
    """What is measured, and how much of it is shown."""

    feature_size: int = Field(96, ge=32, le=1024)
    """Side in pixels that pictures are resized to for the feature network. Larger sees finer detail: 224 is what it
    was trained on, and costs five times as much as 96. Distances of different sizes are not comparable."""
    inception: str = "auto"
    """Weights of the standard Inception (FID's), for the figures that papers print: a path on every machine that
    evaluates; `auto`, where torch's hub keeps what torch-fidelity or pytorch-fid fetched, if it does; or `none`."""
    reference: str | None = None
    """Statistics of other pictures to take the FID of samples to: an .npz with `mu` and `sigma` of the standard
    Inception, as pytorch-fid and ADM keep them. Default: none."""
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


def evaluate_inputs(config: EvaluateConfig) -> dict[str, Source]:
    """The files from outside that a configuration names, as inputs of its stage: `inception` and `reference`.

    Raises ConfigError where one of them is missing.
    """
    inception = inception_inputs(config.inception)
    if config.reference is not None and not inception:
        raise ConfigError(
            f"evaluate.reference={config.reference} is of Inception's features, and evaluate.inception="
            f"{config.inception} finds no weights of it: name them with evaluate.inception=PATH"
        )
    return {**inception, **reference_inputs(config.reference)}


def evaluate(
    config: EvaluateConfig,
    *,
    shards: Artifact,
    tokenizer: Artifact,
    prior: Artifact,
    samples: Artifact,
    tokens: Artifact | None = None,
    maps: Artifact | None = None,
    inception: Source | None = None,
    reference: Source | None = None,
    output: Output,
    runtime: BoundRuntime,
) -> Metrics:
    """Measure units of pictures and tokens, merge them into figures, write report.json and report.html.

    Tokenizer, prior and samples may be older than the shards: classes are told apart by their names. Without `tokens`
    (where theirs would be another tokenizer's) likelihood and codebook use are not measured. `inception` and
    `reference` are the files of `evaluate_inputs`. Raises DataError without held-out pictures, StageError where the
    artifacts do not belong together.
    """
    from stages.data.shards import open_split
    from stages.metrics.listing import Listing
    from stages.metrics.measured import Measured
    from stages.metrics.planned import Planned, spread
    from stages.metrics.report.codes import code_sheet, codes_unit
    from stages.metrics.report.told_and_drawn import told_and_drawn
    from stages.metrics.subject import Subject
    from stages.metrics.told import Told

    judged = Subject.read(shards=shards, tokenizer=tokenizer, tokens=tokens, prior=prior, samples=samples, maps=maps)
    _check(judged)
    _tell(config, judged, inception, output)
    splits = {split: open_split(shards, split) for split in ("train", "val")}
    splits["train"] = spread(splits["train"], config.train_pictures, int(judged.dataset["num_train"]))
    splits["sample"] = open_split(samples, "sample")
    # From each training table only its share of as many pictures as are held out: enough to see overfitting.
    rows = {"val": None, "train": -(-int(judged.dataset["num_val"]) // max(len(splits["train"]), 1))}
    listing = Listing.read(splits, tokens, rows, judged.space.codebook_size)
    planned = Planned(splits, judged.space, tokenizer.digest, config.feature_size, config.batch_size, rows)
    told = Told.read(splits, tokens, samples, maps, judged.space.kinds)
    units = _units(config, judged, planned, told, listing, inception)
    counts_K = listing.codes["train"] + listing.codes["val"]
    if judged.tokens:
        units.append(codes_unit(counts_K, {**planned.seeing, "tokenizer": tokenizer.digest}))
    weights = find_inception(config.inception) if inception else None
    worker = functools.partial(load_measurer, tokenizer.folder, prior.folder, weights)
    records = output.map_units(worker, units, runtime, label="evaluate")
    arrays = {record.name: unit_arrays(output, record) for record in records}
    measured = Measured.join(list(arrays.items()), listing, judged.classes)
    obedience = told.figures(measured, list(arrays.items()), judged.space.image_size, config.seed)
    judgement, by_class = _judge(config, judged, measured, obedience, arrays, records, inception, reference, output)
    examples = told_and_drawn(samples, splits["sample"], tokens, told.maps, judged.space.classes)
    sheet = code_sheet(arrays["codes-000000"]["tiles"], counts_K) if judged.tokens else None
    return _write(config, judged, splits, measured, judgement, by_class, examples, sheet, arrays, output)


def load_measurer(tokenizer_folder: Folder, prior_folder: Folder, inception: Path | None, device: str) -> Worker:
    """Return the worker that makes units of evaluation; it loads networks when it first needs them."""
    from stages.metrics.measure import Measurer
    from stages.models.pretrained import fetched

    return Measurer(fetched(tokenizer_folder), fetched(prior_folder), device, inception)


def _check(judged: Subject) -> None:
    """Refuse pictures and samples that are too few, and artifacts that were not made from one another."""
    if judged.dataset["num_val"] < FEWEST:
        raise DataError(
            f"{judged.dataset['num_val']} pictures are held out, evaluation needs {FEWEST} and makes sense from some "
            "hundred: raise shard.validation_fraction, or add pictures"
        )
    judged.check()
    num_samples = sum(unit.counts["samples"] for unit in judged.samples.units)
    if num_samples < FEWEST:
        raise ConfigError(f"{num_samples} samples cannot be judged: set sample.num_samples to {FEWEST} at least")


def _tell(config: EvaluateConfig, judged: Subject, inception: Source | None, output: Output) -> None:
    """Announce what is left out, and figures that are not what one might take them for."""
    for it in judged.not_measured():
        output.warn(f"not measured: {it['what']}: {it['why']}")
    if inception is None and config.inception == "auto":
        output.warn(how_to_get_it())
    if inception is not None and inception.listing[0].stamp != STANDARD:
        output.warn(
            f"{inception.listing[0].path} holds other weights than the standard Inception's (sha256 {STANDARD[:12]}): "
            "figures by it are named fd_inception instead of fid, and compare with nothing that others print"
        )


def _units(
    config: EvaluateConfig,
    judged: Subject,
    planned: Planned,
    told: Told,
    listing: Listing,
    inception: Source | None,
) -> list[Unit]:
    """All units; a recipe holds what its own bytes depend on, so a new prior measures no real picture again."""
    seeing, tokenizer = planned.seeing, judged.tokenizer.digest
    codes = listing.codes["train"].tolist()
    units = [
        *planned.features(),
        *(planned.inception(inception.listing[0].stamp) if inception else ()),
        *planned.chance(judged.tokens, codes, config.chance_pictures, config.seed),
        *told.units(planned.splits, {**seeing, "tokenizer": tokenizer}, config.seed),
        *told.window_units(planned.splits, seeing, tokenizer),
    ]
    if judged.tokens and judged.corpus and not judged.why_no_likelihood:
        units += planned.likelihood(judged.tokens, judged.prior.digest, judged.corpus)
    return units


def _judge(
    config: EvaluateConfig,
    judged: Subject,
    measured: Measured,
    obedience: Mapping[str, Any],
    arrays: Mapping[str, Mapping[str, Any]],
    records: Sequence[UnitRecord],
    inception: Source | None,
    reference: Source | None,
    output: Output,
) -> tuple[Judgement, dict[str, Any]]:
    """All figures, and those of each class."""
    from stages.metrics.by_class import class_figures
    from stages.metrics.judge import judge
    from stages.metrics.networks import imported_from, inception_look, packaged_look

    looks = [packaged_look(config.feature_size, measured)]
    weights = find_inception(config.inception)
    if inception and weights:
        looks.append(inception_look(weights, inception.listing[0].stamp, arrays, measured))
    figures = dict(obedience)
    for look in looks:
        figures |= look.standard(records, output, config.seed).figures(imported_from(reference, config.reference, look))
    judgement = judge(
        measured, num_codes=judged.space.codebook_size, seed=config.seed, network=looks[0].network, beside=figures
    )
    return judgement, class_figures(judged.dataset["classes"], measured, looks)


def _write(
    config: EvaluateConfig,
    judged: Subject,
    splits: Mapping[str, Sequence[Shard]],
    measured: Measured,
    judgement: Judgement,
    by_class: Mapping[str, Any],
    examples: list[ToldAndDrawn],
    codes: CodeSheet | None,
    arrays: Mapping[str, Mapping[str, Any]],
    output: Output,
) -> Metrics:
    """Write both reports, and return the figures worth a line in the closing table."""
    from stages.metrics.report.lineage import LINEAGE, lineage_of
    from stages.metrics.report.page import HowMany, Shown, describe, evaluation_page
    from stages.metrics.report.provenance import cost_of, total_cost
    from stages.metrics.selected import mark_selected, selection_of

    dataset, inputs = judged.dataset, judged.inputs
    selection = selection_of(judged.samples.read_json("samples.json"))
    judgement = dataclasses.replace(judgement, figures=mark_selected(judgement.figures, selection))
    named = [dataset["classes"][label] for label in judgement.left_out]
    left_out = [name for name in named if name not in judged.classes.unknown_to_model]
    if left_out:
        output.warn(f"too few samples to judge the classes {', '.join(left_out)}: raise sample.num_samples")
    report = describe(dataset, measured, judgement, left_out, inputs) | ({"selection": selection} if selection else {})
    report |= {"not_measured": judged.not_measured(), "class_figures": by_class}
    output.write_json("report.json", report)
    costs = [cost_of(artifact) for artifact in inputs.values()]
    cost = {"stages": costs, "total": total_cost(costs)}
    output.write_json("cost.json", cost, content=False)  # differs between equal runs
    lineage = lineage_of(inputs.values())
    output.write_json(LINEAGE, lineage, content=False)
    pieces = [found for name, found in arrays.items() if name.startswith("reconstruction-")]
    how_many = HowMany(config.shown_per_class, config.shown_reconstructions, config.shown_neighbours)
    shown = Shown.collect(how_many, judged.space.classes, splits, judgement, pieces, examples, codes)
    page = evaluation_page(report, cost, lineage, shown, measured, judgement, inputs, output.warnings)
    output.write("report.html", page.encode(), content=False)
    lead = ("kid_samples", "kid_floor", "gfid_train", "psnr", "codebook_used_corpus", "bits_per_token_held_out")
    return {name: report["figures"][name]["value"] for name in lead if name in report["figures"]}


def unit_arrays(output: Output, record: UnitRecord) -> dict[str, Any]:
    """The arrays of a finished unit."""
    from safetensors.numpy import load_file

    with output.store.files(record)[record.files[0].path].held() as path:
        arrays: dict[str, Any] = load_file(path)
    return arrays
