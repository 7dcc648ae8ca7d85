"""A model that is older than the data is judged on today's pictures: classes by name, what is not measured is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import Artifact
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from stages.evaluate import EvaluateConfig, evaluate
from stages.metrics.likelihood import condition_for
from stages.models.vocabulary import Segment, TokenSpace
from tests.stages.made_up import World, make

CONFIG = EvaluateConfig(feature_size=32, chance_pictures=12, inception="none")
NEW = World(classes=("bars", "discs", "squares", "stripes"), shares=(0.1, 0.4, 0.3, 0.2), history=False)


def run(inputs: dict[str, Artifact], workdir: Path) -> Artifact:
    stage = Stage("incumbent", evaluate, CONFIG, inputs)  # type: ignore[arg-type]
    return run_stage(stage, inputs, str(workdir), LocalRuntime())


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Today's shards and tokens; tokenizer, prior and samples from when there were no bars."""
    then = make(tmp_path_factory.mktemp("then"), World(history=False))
    now = make(tmp_path_factory.mktemp("now"), NEW)
    return {**then, "shards": now["shards"], "tokens": now["tokens"]}


@pytest.mark.slow
def test_classes_are_those_of_the_same_name_and_new_ones_are_told(older: dict[str, Artifact], tmp_path: Path) -> None:
    artifact = run(older, tmp_path)
    report = artifact.read_json("report.json")
    assert {row["class"]: row["samples"] for row in report["classes"]} == {
        "bars": 0,
        "discs": 12,
        "squares": 12,
        "stripes": 12,
    }
    assert report["not_measured"] == [
        {"what": "samples of bars", "why": "the prior was trained before there were any"},
    ]
    assert report["classes_left_out"] == []
    assert report["figures"]["bits_per_token_held_out"]["samples"] == 40
    assert "samples of bars" in artifact.notes["warnings"][0]
    page = artifact.folder.read("report.html").decode()
    assert "sample of discs" in page and "sample of bars" not in page
    # The same pictures without tokens give the same distances, but for chance, which knows no frequencies.
    without = run({name: it for name, it in older.items() if name != "tokens"}, tmp_path)
    found = without.read_json("report.json")
    assert [it["what"] for it in found["not_measured"]] == [
        "bits per token",
        "codebook use of the corpus",
        "samples of bars",
    ]
    gone = set(report["figures"]) - set(found["figures"])
    assert gone and all(name.startswith(("bits_", "overfit", "codebook")) for name in gone)
    for name in ("kid_samples", "frechet_reconstructions", "psnr", "gfd_lite0_train", "suspiciously_near"):
        assert found["figures"][name] == report["figures"][name]
    assert "each code alike" in found["figures"]["kid_chance"]["computed_on"]
    page = without.folder.read("report.html").decode()
    assert "Bits per token" not in page.split("Class by class")[0] and "Where the prior is unsure" not in page


def space(*classes: str) -> TokenSpace:
    return TokenSpace(
        tokenizer="t",
        codebook_size=10,
        grid=(2, 2),
        classes=classes,
        condition=(
            Segment(kind="class", length=1, size=len(classes)),
            Segment(kind="coordinates", length=2, size=4),
        ),
        image_size=16,
        channels=3,
    )


def test_condition_tokens_keep_their_meaning_in_a_space_of_other_classes() -> None:
    today, then = space("a", "b", "c"), space("c", "a")
    values = [np.array([0, 1, 2, -1]), np.array([[0, 1], [2, 3], [1, 1], [-1, -1]])]
    import torch

    tokens = today.vocabulary.condition(*map(torch.from_numpy, values)).numpy()
    renumbered = torch.from_numpy(condition_for(tokens, today, then))
    assert then.vocabulary.values(renumbered, "class").flatten().tolist() == [1, -1, 0, -1]
    assert then.vocabulary.values(renumbered, "coordinates").tolist() == values[1].tolist()
    assert condition_for(tokens, today, today) is tokens
