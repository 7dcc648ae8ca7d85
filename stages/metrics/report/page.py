"""Puts the report together: report.json's content, and the one-file HTML page around the same numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stages.metrics.judge import FEATURES, Judgement
from stages.metrics.measured import Measured
from stages.metrics.report import tables, words
from stages.metrics.report.codes import CodeSheet
from stages.metrics.report.curves import PRIOR_CHARTS, TOKENIZER_CHARTS, draw_charts, draw_codebook, draw_nearness
from stages.metrics.report.maps import draw_map
from stages.metrics.report.pictures import (
    Pair,
    Samples,
    data_uri,
    nearest_pairs,
    reconstruction_pairs,
    samples_by_class,
)
from stages.metrics.report.rejects import Rejects
from stages.metrics.report.rendering import page, render
from stages.metrics.report.told_and_drawn import ToldAndDrawn

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact
    from stages.data.shards import Shard

FORMAT = 2


class HowMany(NamedTuple):
    """How many pictures the page shows."""

    per_class: int
    reconstructions: int
    neighbours: int


@dataclass(frozen=True)
class Shown:
    """The pictures of the page."""

    samples: Samples
    reconstructions: list[Pair]
    neighbours: list[Pair]
    told: list[ToldAndDrawn]
    """Conditions beside their samples, where samples were drawn from more than classes."""
    codes: CodeSheet | None = None

    @classmethod
    def collect(
        cls,
        how_many: HowMany,
        classes: Sequence[str],
        splits: Mapping[str, Sequence[Shard]],
        judgement: Judgement,
        reconstructions: Sequence[Mapping[str, Any]],
        told: list[ToldAndDrawn],
        codes: CodeSheet | None = None,
    ) -> Shown:
        """Choose and read them."""
        neighbours = (judgement.neighbour_N, judgement.neighbour_distance_N)
        return cls(
            samples=samples_by_class(splits["sample"], classes, how_many.per_class),
            reconstructions=reconstruction_pairs(reconstructions, how_many.reconstructions),
            neighbours=nearest_pairs(splits["sample"], splits["train"], *neighbours, how_many.neighbours),
            told=told,
            codes=codes,
        )


def describe(
    dataset: Mapping[str, Any],
    measured: Measured,
    judgement: Judgement,
    left_out: Sequence[str],
    inputs: Mapping[str, Artifact],
) -> dict[str, Any]:
    """The content of report.json: a function of the inputs' bytes alone."""
    figures = judgement.figures
    counts = (dataset["image_size"], dataset["num_train"], dataset["num_val"])
    return {
        "format": FORMAT,
        "verdict": words.verdict(figures),
        "findings": words.findings(figures, len(dataset["classes"]), *counts),
        "features": FEATURES,
        "figures": figures,
        "bits_per_position": _bits_per_position(measured, inputs["prior"].read_json("config.json")["grid"]),
        "classes": tables.class_table(dataset["classes"], dataset["class_counts"], measured),
        "classes_left_out": list(left_out),
        "dataset": {name: dataset[name] for name in ("image_size", "channels", "num_train", "num_val", "attribution")},
        "inputs": {name: {"stage": artifact.stage, "digest": artifact.digest} for name, artifact in inputs.items()},
    }


def evaluation_page(
    report: Mapping[str, Any],
    cost: Mapping[str, Any],
    lineage: Mapping[str, Any],
    shown: Shown,
    measured: Measured,
    judgement: Judgement,
    inputs: Mapping[str, Artifact],
    own_warnings: Sequence[str],
) -> str:
    """The page: one file, no script, nothing to load; readable in light and dark and on paper."""
    figures = report["figures"]
    warnings = [(artifact.stage, line) for artifact in inputs.values() for line in artifact.notes.get("warnings", ())]
    warnings += [("evaluate", line) for line in own_warnings]
    heads, compared = tables.comparisons(figures)
    body = render(
        "evaluation.html.j2",
        report=report,
        figures=figures,
        shown=shown,
        distrust=words.distrust(figures, report["classes"], report["classes_left_out"], len(warnings))
        + ([report["selection"]["caveat"]] if "selection" in report else []),
        scale=tables.scale(figures),
        compared={"heads": heads, "rows": compared},
        copying=words.copying(figures),
        obedience=tables.obedience(figures),
        every_figure=list(tables.every_figure(figures)),
        by_class=tables.distances_by_class(report["class_figures"]),
        charts={
            "tokenizer": draw_charts(TOKENIZER_CHARTS, _history(inputs["tokenizer"])),
            "prior": draw_charts(PRIOR_CHARTS, _history(inputs["prior"])),
        },
        nearness=draw_nearness(*judgement.nearness.quantiles()),
        maps=_maps(report["bits_per_position"]) if report["bits_per_position"] else [],
        codebook=draw_codebook(measured.train_codes_K + measured.held_out_codes_K, measured.held_out_codes_K)
        if measured.train_codes_K.any()
        else None,
        num_codes=len(measured.train_codes_K),
        tokens_per_picture=int(np.prod(inputs["prior"].read_json("config.json")["grid"])),
        contact_sheet=_contact_sheet(inputs["shards"]),
        rejects=Rejects.read(inputs["shards"], inputs["shards"].read_json("dataset.json")),
        selection=report.get("selection"),
        selected_grid=data_uri(inputs["samples"].local("grid.png").read_bytes()) if "selection" in report else None,
        cost=cost,
        lineage=lineage,
        warnings=warnings,
    )
    return page(report["verdict"], render("verdict.html.j2", report=report), body)


def _bits_per_position(measured: Measured, grid: Sequence[int]) -> dict[str, Any]:
    """Bits of the token at each place of the grid, averaged over pictures; nothing where they were not measured."""
    if not len(measured.held_out_bits_N):
        return {}
    splits = {
        "held_out": (measured.held_out_position_bits_T, len(measured.held_out_bits_N)),
        "train": (measured.train_position_bits_T, len(measured.train_bits_N)),
    }
    return {
        name: {
            "value": bits_T.reshape(*grid).tolist(),
            "samples": count,
            "computed_on": f"tokens of {name.replace('_', '-')} pictures given condition and tokens before each",
        }
        for name, (bits_T, count) in splits.items()
    }


def _maps(positions: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(caption, SVG): how unsure the prior is at each place, and how much less so for pictures it was trained on."""
    held_out_HW, train_HW = (np.array(positions[split]["value"]) for split in ("held_out", "train"))
    return [
        ("Bits for the token at each place, held-out pictures", draw_map(held_out_HW, "bits")),
        (
            "How many fewer bits for training pictures: learned by heart",
            draw_map(held_out_HW - train_HW, "bits fewer", colour="--series-2"),
        ),
    ]


def _history(artifact: Artifact) -> list[dict[str, float]]:
    return [json.loads(line) for line in artifact.local("history.jsonl").read_text().splitlines()]


def _contact_sheet(shards: Artifact) -> str | None:
    names = [entry.path for entry in shards.own_files if entry.path == "contact_sheet.png"]
    return data_uri(shards.local(names[0]).read_bytes()) if names else None
