"""The graph that a config gives: more stages only where a condition needs them."""

from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.stage import Stage
from run_pipeline import Config, build
from tests.small import ROOT

PLAIN = ["shard", "tokenizer", "encode", "prior", "sample", "evaluate", "publish"]
SPATIAL = ["shard", "tokenizer", "maps", "cond_tokenizer", "encode", "prior", "sample", "evaluate", "publish"]


def stages(*overrides: str) -> dict[str, Stage]:
    config = load_config(Config, Path(ROOT) / "configs" / "emoji.yaml", overrides)
    return {stage.name: stage for stage in build(config)}


@pytest.mark.parametrize("condition", ["none", "class", "[class, caption]", "coordinates", "[boxes, class]"])
def test_conditions_without_maps_need_no_other_stages(condition: str) -> None:
    assert list(stages(f"condition={condition}")) == PLAIN


@pytest.mark.parametrize("condition", ["edges", "[class, low_resolution]", "{kind: segmentation, num_classes: 9}"])
def test_a_spatial_condition_brings_maps_and_their_tokenizer(condition: str) -> None:
    graph = stages(f"condition={condition}")
    assert list(graph) == SPATIAL
    assert graph["cond_tokenizer"].inputs["shards"] is graph["maps"]
    assert graph["cond_tokenizer"].work is graph["tokenizer"].work


def test_a_tokenizer_of_maps_starts_from_weights_and_is_kept_as_that_of_pictures(tmp_path: Path) -> None:
    weights = f"cond_tokenizer.from_checkpoint={tmp_path}"
    graph = stages("condition=edges", weights, "cond_tokenizer.policy=keep")
    assert set(graph["cond_tokenizer"].inputs) == {"shards", "checkpoint"} and graph["cond_tokenizer"].policy == "keep"
    assert set(graph["tokenizer"].inputs) == {"shards"} and graph["tokenizer"].policy == "scratch"
    with pytest.raises(ConfigError, match=rf"cond_tokenizer.from_checkpoint: {tmp_path} holds no trained"):
        assert graph["cond_tokenizer"].inputs["checkpoint"].digest


def test_class_numbers_reach_their_tokenizer_and_opacity_the_shards() -> None:
    segmentation = stages("condition={kind: segmentation, num_classes: 9}")
    assert segmentation["cond_tokenizer"].config.model.labels == 9  # type: ignore[attr-defined]
    assert stages("condition=alpha")["shard"].config.alpha  # type: ignore[attr-defined]
    assert not stages()["shard"].config.alpha  # type: ignore[attr-defined]


def test_samples_of_classes_do_not_wait_for_the_tokens() -> None:
    assert set(stages()["sample"].inputs) == {"tokenizer", "prior"}
    assert set(stages("condition=caption")["sample"].inputs) == {"tokenizer", "prior", "tokens"}
    assert set(stages("condition=edges")["sample"].inputs) == {"tokenizer", "prior", "tokens", "maps"}


def test_two_maps_are_refused() -> None:
    with pytest.raises(ConfigError, match="edges, sketch: one of these maps at a time"):
        stages("condition=[edges, sketch]")
