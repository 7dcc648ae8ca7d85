"""The graph that a config gives: more stages only where a condition needs them."""

from pathlib import Path

import pytest

from pipeline.artifacts import Artifact
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.stage import Stage
from pipeline.storage import Folder
from pipeline.units import UnitStore
from pipeline.versions.registry import Published
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


def published(**conditions: object) -> Published:
    """A version of the emoji at 64x64, that was told `condition`."""

    def made(stage: str, recipe: dict[str, object] | None = None) -> Artifact:
        folder, digest = Folder.at(f"/nowhere/{stage}"), f"{stage}'s"
        store = UnitStore(folder, stage, 0)
        return Artifact(folder, store, stage, "f" * 64, {"config": recipe or {}}, digest, {}, {}, (), ())

    cut = made("shard", {"image_size": 64, "channels": 3})
    told = made("encode", {"condition": [conditions or {"kind": "class"}]})
    names = ("tokenizer", "cond_tokenizer", "prior", "sample", "publish")
    return Published(3, {}, {"shard": cut, "encode": told, **{name: made(name) for name in names}})


def judging(version: Published, *overrides: str) -> dict[str, Stage]:
    config = load_config(Config, Path(ROOT) / "configs" / "emoji.yaml", overrides)
    return {stage.name: stage for stage in build(config, version, version)}


def test_the_version_in_use_is_judged_on_todays_pictures_with_what_belongs_to_it() -> None:
    version = published()
    graph = judging(version)
    again, judged = graph["incumbent_encode"], graph["incumbent"]
    assert again.inputs["shards"] is graph["shard"] and again.inputs["tokenizer"] is version.artifacts["tokenizer"]
    assert judged.inputs["tokens"] is again and judged.inputs["samples"] is version.artifacts["sample"]
    assert (again.home, judged.home) == ("encode", "evaluate")
    digests = {"shards": "s", "tokenizer": "t"}
    assert again.recipe(digests) == graph["encode"].recipe(digests), "with the same tokenizer it is the same artifact"
    assert graph["publish"].inputs["incumbent_evaluation"] is judged
    assert graph["publish"].config.incumbent == 3  # type: ignore[attr-defined]
    assert list(graph)[-3:] == ["incumbent_encode", "incumbent", "publish"]


def test_a_version_of_other_pictures_or_conditions_is_not_judged_on_these() -> None:
    for overrides in ("shard.image_size=32", "shard.channels=1", "condition=none"):
        graph = judging(published(), overrides)
        assert "incumbent" not in graph and "incumbent_evaluation" not in graph["publish"].inputs
        assert "incumbent" in graph["publish"].inputs, "the gate says that they cannot be compared"


def test_captions_keep_their_byte_pairs_where_something_learnt_them() -> None:
    told = load_config(Config, Path(ROOT) / "configs" / "emoji.yaml", ["condition=caption"]).condition[0]
    version = published(**told.model_dump(mode="json"))
    scratch, warm = (judging(version, "condition=caption", f"prior.policy={policy}") for policy in ("scratch", "warm"))
    assert "vocabulary" not in scratch["encode"].inputs and "checkpoint" not in scratch["prior"].inputs
    assert warm["encode"].inputs["vocabulary"] is version.artifacts["encode"]
    assert warm["prior"].inputs["checkpoint"] is version.artifacts["prior"]
    assert all(graph["incumbent_encode"].inputs["vocabulary"] for graph in (scratch, warm))


def test_policies_change_a_fingerprint_only_where_there_is_a_version_to_start_from() -> None:
    policies = ("tokenizer.policy=finetune", "prior.policy=warm", "prior.warm_steps=7", "tokenizer.finetune_steps=9")
    plain, asked = stages(), stages(*policies)
    for name in ("tokenizer", "prior"):
        assert plain[name].recipe({}) == asked[name].recipe({})
    started = judging(published(), *policies)
    assert started["prior"].recipe({})["config"]["warm_steps"] == 7
    assert started["tokenizer"].recipe({})["config"]["finetune_steps"] == 9
