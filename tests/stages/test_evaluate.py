"""The evaluate stage: right figures, the same bytes again, only missing units, and a page that shows all of it."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from skimage.metrics import structural_similarity

from pipeline.artifacts import Artifact
from pipeline.errors import ConfigError, DataError, StageError
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from pipeline.units import Unit
from stages.data.images import to_model_range, to_uint8
from stages.data.loader import load_all
from stages.data.shards import ShardReader, open_split
from stages.data.tables import read_tokens
from stages.evaluate import EvaluateConfig, evaluate
from stages.metrics.measure import Measurer
from stages.models.losses.perceptual import FeatureDistance
from stages.models.tokenizer import Tokenizer
from tests.stages.made_up import World, make

CONFIG = EvaluateConfig(feature_size=32, chance_pictures=12, shown_per_class=3, shown_neighbours=4, inception="none")


def run(inputs: dict[str, Artifact], workdir: Path, config: EvaluateConfig = CONFIG) -> Artifact:
    stage = Stage("evaluate", evaluate, config, inputs)  # type: ignore[arg-type]
    return run_stage(stage, inputs, str(workdir), LocalRuntime())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def report(world: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return run(world, tmp_path_factory.mktemp("report"))


def test_every_figure_says_what_it_was_computed_on(report: Artifact) -> None:
    figures = report.read_json("report.json")["figures"]
    for name in ("samples", "reconstructions", "floor", "chance"):
        for kind in ("kid", "frechet", "precision", "recall", "density", "coverage"):
            figure = figures[f"{kind}_{name}"]
            assert figure["interval"][0] <= figure["value"] <= figure["interval"][1], f"{kind}_{name}"
            assert "EfficientNet-Lite0" in figure["computed_on"]
    for name, figure in figures.items():
        assert figure["samples"] > 0 and len(figure["computed_on"]) > 20 and len(figure["what"]) > 15, name
        assert ("interval" in figure) == (not name.startswith("codebook")), name
        assert figure["better"] in ("higher", "lower"), name
    assert not any("fid" in name for name in figures)
    assert (figures["kid_samples"]["samples"], figures["kid_samples"]["against"]) == (36, 40)
    assert figures["kid_floor"]["samples"] == 40


def test_noisy_samples_are_farther_than_the_real_floor(report: Artifact) -> None:
    figures = report.read_json("report.json")["figures"]
    assert figures["kid_samples"]["value"] > figures["kid_floor"]["interval"][1]


def test_reconstruction_is_that_of_the_tokenizer_on_every_held_out_picture(
    world: dict[str, Artifact], report: Artifact
) -> None:
    tokenizer = Tokenizer.load(world["tokenizer"].local("model.safetensors").parent)
    pictures, _, _ = load_all(open_split(world["shards"], "val"), 3)
    rebuilt = to_uint8(tokenizer.reconstruct(to_model_range(pictures)))
    squared = np.square((rebuilt.astype(np.float64) - pictures) / 255).mean(axis=(1, 2, 3))
    paper = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    ssim = [structural_similarity(a, b, channel_axis=2, **paper) for a, b in zip(pictures, rebuilt, strict=True)]
    figures = report.read_json("report.json")["figures"]
    assert figures["psnr"]["value"] == pytest.approx(np.mean(-10 * np.log10(squared)), abs=1e-3)
    assert figures["psnr_of_mean_error"]["value"] == pytest.approx(-10 * np.log10(squared.mean()), abs=1e-3)
    assert figures["psnr_of_mean_error"]["value"] < figures["psnr"]["value"]
    assert figures["ssim"]["value"] == pytest.approx(np.mean(ssim), abs=1e-4)
    assert figures["l1"]["value"] == pytest.approx(np.abs(rebuilt.astype(float) - pictures).mean() / 255, rel=1e-3)
    assert figures["psnr"]["samples"] == figures["perceptual"]["samples"] == 40
    distance = FeatureDistance((0, 1, 2, 3, 4))(to_model_range(pictures), to_model_range(rebuilt)).mean()
    assert figures["perceptual"]["value"] == pytest.approx(float(distance), rel=1e-4)


def test_codebook_use_counts_the_whole_corpus_and_the_held_out_part(
    world: dict[str, Artifact], report: Artifact
) -> None:
    tables = {
        unit.name: read_tokens(world["tokens"].local(file.path))
        for unit, file in world["tokens"].unit_files(".parquet")
    }
    figures = report.read_json("report.json")["figures"]
    corpus = np.concatenate([table.tokens_NT for table in tables.values()])
    assert figures["codebook_used_corpus"]["value"] == len(np.unique(corpus)) / 16
    assert figures["codebook_used_corpus"]["samples"] == corpus.size
    assert figures["codebook_used_held_out"]["value"] == len(np.unique(tables["val-000000"].tokens_NT)) / 16


def test_likelihood_reads_each_held_out_picture_once_and_about_as_many_training_pictures(report: Artifact) -> None:
    figures = report.read_json("report.json")["figures"]
    assert figures["bits_per_token_held_out"]["samples"] == 40
    assert figures["bits_per_token_train"]["samples"] == 40
    gap = figures["bits_per_token_held_out"]["value"] - figures["bits_per_token_train"]["value"]
    assert figures["overfit_gap"]["value"] == pytest.approx(gap)
    assert 3.5 < figures["bits_per_token_held_out"]["value"] < 4.5


def test_bits_per_position_average_to_bits_per_token(report: Artifact) -> None:
    content = report.read_json("report.json")
    for split in ("held_out", "train"):
        positions = content["bits_per_position"][split]
        bits = np.array(positions["value"])
        assert bits.shape == (4, 4) and positions["samples"] == 40
        assert bits.mean() == pytest.approx(content["figures"][f"bits_per_token_{split}"]["value"])


@pytest.mark.slow
def test_pictures_of_one_group_widen_the_intervals(world: dict[str, Artifact], tmp_path: Path) -> None:
    grouped = run(make(tmp_path / "world", World(group_size=5, history=False)), tmp_path / "report")
    alone = run(make(tmp_path / "alone", World(history=False)), tmp_path / "report")
    before, after = (artifact.read_json("report.json")["figures"]["psnr"] for artifact in (alone, grouped))
    assert before["value"] == after["value"], "groups are about the intervals alone"
    assert before["interval"] != after["interval"]


def test_what_the_stages_cost_lies_beside_the_report_and_outside_its_digest(report: Artifact) -> None:
    cost = json.loads(report.folder.read("cost.json"))
    assert [row["stage"] for row in cost["stages"]] == ["shard", "tokenizer", "encode", "prior", "sample"]
    shard = cost["stages"][0]
    assert 0 < shard["device_seconds"]["cpu"] <= shard["seconds"] and "cores" in shard["machine"]
    assert cost["total"]["seconds"] == pytest.approx(sum(row["seconds"] for row in cost["stages"]))
    assert "What it cost" in report.folder.read("report.html").decode()
    assert report.notes["device_seconds"]["cpu"] > 0 and report.notes["attempt"] == 1


def test_the_same_inputs_give_the_same_report_bytes(
    world: dict[str, Artifact], report: Artifact, tmp_path: Path
) -> None:
    torch.set_num_threads(2)
    again = run(world, tmp_path)
    assert again.digest == report.digest
    pages = [artifact.folder.read("report.html") for artifact in (report, again)]
    assert pages[0] == pages[1]


@pytest.mark.slow
def test_showing_more_measures_nothing_again(world: dict[str, Artifact], tmp_path: Path) -> None:
    first = run(world, tmp_path)
    more = run(world, tmp_path, CONFIG.model_copy(update={"shown_per_class": 5}))
    assert first.notes["units_reused"] == 0
    assert more.notes["units_reused"] == len(more.units) == 12
    assert more.read_json("report.json") == first.read_json("report.json")


class Page(HTMLParser):
    """Collects what a page would load, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href")]


def test_the_page_is_one_file_without_scripts_that_loads_nothing(report: Artifact) -> None:
    html = report.folder.read("report.html").decode()
    page = Page()
    page.feed(html)
    assert page.loads and all(load.startswith(("data:image/", "#")) for load in page.loads)
    assert "default-src 'none'" in html
    assert "script" not in page.tags and "link" not in page.tags
    assert "url(http" not in html and "@import" not in html


def test_the_page_shows_verdict_figures_pictures_curves_warnings_and_attribution(report: Artifact) -> None:
    html = report.folder.read("report.html").decode()
    content = report.read_json("report.json")
    assert content["verdict"] in html
    assert all(word in html for word in ("discs", "squares", "stripes", "made up: nothing here is real"))
    assert "Shapes by &lt;nobody&gt;, CC0" in html
    assert html.count('alt="sample of discs"') == 3
    assert html.count('alt="nearest training picture"') == 4
    # PSNR, losses, codes in use; bits per token, two maps of them; nearness, codebook
    assert html.count("<svg") == 8 and "<image" not in html
    assert "prefers-color-scheme: dark" in html
    assert not re.search(r"\bFID\b(?! or KID values)", html)


@pytest.mark.parametrize("kind", ["classifier", "likelihood"])
def test_selected_samples_are_reported_as_such(kind: str, tmp_path: Path) -> None:
    report = run(make(tmp_path, World(selected=kind)), tmp_path / "report")
    content, html = report.read_json("report.json"), report.folder.read("report.html").decode()
    assert content["selection"]["candidates"] == 8
    figures = content["figures"]
    for name, figure in figures.items():
        chosen = "samples are the best 1 of 8 candidates by" in figure["computed_on"]
        of_samples = name.endswith("_samples") or name in ("suspiciously_near", "obedience_class")
        assert chosen or not of_samples, name
        assert not (
            chosen and name in ("psnr", "kid_floor", "kid_chance", "held_out_copies", "obedience_class_possible")
        )
    circular = kind == "classifier"
    assert figures["kid_samples"]["computed_on"].endswith("flattered") == circular
    assert ("those figures are circular here" in html) == circular
    assert "Selection costs variety" in html and "Unselected" not in html
    assert "0.750 of those kept, 0.500 of all" in html and "25% reached 0.500, and 3 samples below it" in html
    assert 'alt="selected samples beside samples as they come"' in html


def test_the_report_leaves_timings_and_paths_out_of_its_content(report: Artifact, world: dict[str, Artifact]) -> None:
    text = json.dumps(report.read_json("report.json"))
    assert "seconds" not in text and "/" + str(world["shards"].folder).strip("/") not in text
    assert [entry.path for entry in report.own_files] == ["report.json"]


def test_pictures_without_classes_are_judged_as_they_are(tmp_path: Path) -> None:
    inputs = make(tmp_path / "world", World(classes=(), shares=(), history=False))
    report = run(inputs, tmp_path / "report")
    content = report.read_json("report.json")
    assert content["classes"] == []
    assert content["figures"]["kid_samples"]["computed_on"].count("weighted") == 0
    assert "How the prior learned" not in report.folder.read("report.html").decode()


def test_grey_pictures_are_judged_too(tmp_path: Path) -> None:
    report = run(make(tmp_path / "world", World(channels=1, history=False)), tmp_path / "report")
    assert 0 < report.read_json("report.json")["figures"]["psnr"]["value"] < 40


def test_a_class_with_too_few_samples_is_left_out_and_named(tmp_path: Path) -> None:
    report = run(make(tmp_path / "world", World(samples=(8,), history=False)), tmp_path / "report")
    content = report.read_json("report.json")
    assert content["classes_left_out"] == ["stripes"]
    assert content["figures"]["kid_samples"]["samples"] == 6
    assert any("stripes" in warning for warning in report.notes["warnings"])


def test_a_shard_whose_pictures_are_all_removed_measures_as_nothing(tmp_path: Path, world: dict[str, Artifact]) -> None:
    shard = open_split(world["shards"], "val")[0]
    table = ShardReader(shard).table
    gone = dataclasses.replace(shard, tombstones=frozenset(row["key"] for row in table))
    measurer = Measurer(world["tokenizer"].local("model.safetensors").parent, tmp_path, "cpu")
    recipe = {"measure": "reconstruction", "image_size": 32, "channels": 3, "feature_size": 32, "batch_size": 8}
    assert measurer(Unit("reconstruction-val-000000", recipe, {"shard": gone}), tmp_path) == {"pictures": 0}
    arrays = load_file(tmp_path / "reconstruction-val-000000.safetensors")
    assert arrays["features"].shape == (0, 1280) and arrays["originals"].shape == (0, 32, 32, 3)


def test_no_held_out_pictures_is_an_error_that_names_the_key(tmp_path: Path) -> None:
    inputs = make(tmp_path / "world", World(val=(2,)))
    with pytest.raises(DataError, match=r"shard\.validation_fraction"):
        run(inputs, tmp_path / "report")


def test_too_few_samples_is_an_error_that_names_the_key(tmp_path: Path) -> None:
    inputs = make(tmp_path / "world", World(samples=(2,)))
    with pytest.raises(ConfigError, match=r"sample\.num_samples"):
        run(inputs, tmp_path / "report")


def test_samples_of_another_tokenizer_are_refused(world: dict[str, Artifact], tmp_path: Path) -> None:
    other = make(tmp_path / "world", World(size=40))
    with pytest.raises(StageError, match="samples were made with tokenizer"):
        run({**world, "samples": other["samples"]}, tmp_path / "report")


def test_samples_that_show_their_edges_obey_and_those_of_others_do_not(tmp_path: Path) -> None:
    inputs = make(tmp_path / "world", World(told=True, history=False))
    artifact = run(inputs, tmp_path / "report")
    figures = artifact.read_json("report.json")["figures"]
    own, shuffled = figures["obedience_edges"], figures["obedience_edges_shuffled"]
    assert own["value"] > 0.8 > 0.6 > shuffled["interval"][1]
    assert (own["samples"], figures["obedience_edges_possible"]["samples"]) == (80, 40)
    page = artifact.folder.read("report.html").decode()
    assert "Does it do what it is told?" in page
    assert "Obedience, edges" in page
    assert "Told and drawn" in page
    assert (page.count('alt="what was told"'), page.count('alt="what was drawn of it"')) == (8, 16)


def test_classes_are_told_unless_the_tokens_say_otherwise(report: Artifact) -> None:
    figures = report.read_json("report.json")["figures"]
    assert figures["obedience_class"]["samples"] == 36
    assert figures["obedience_class"]["value"] > figures["obedience_class_shuffled"]["interval"][1]
    assert "obedience_caption" not in figures
    assert "Told and drawn" not in report.folder.read("report.html").decode()
