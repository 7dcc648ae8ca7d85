"""Every config that is shipped: it loads, gives a graph, and its smoke version runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import load_config
from run_pipeline import Config, build
from tests.smoke import CONFIGS
from tests.stages_of import run_stages

MAPS = {
    "emoji_edges": "edges",
    "landscapes_seg": "segmentation",
    "depth_to_image": "depth",
    "superres": "low_resolution",
}
PACKAGED = {"emoji", "mnist", "photographs"}


def test_all_are_here() -> None:
    names = "celebahq_pixelcnn depth_to_image emoji emoji_edges emoji_text faces_coord imagenet_f16_class"
    assert set(CONFIGS) == {*names.split(), "landscapes_seg", "mnist_pixelcnn", "superres"}


@pytest.mark.parametrize("smoke", [False, True], ids=["whole", "smoke"])
@pytest.mark.parametrize("name", CONFIGS)
def test_it_loads_and_gives_the_graph_of_its_condition(name: str, smoke: bool) -> None:
    config = load_config(Config, CONFIGS[name], smoke=smoke)
    assert ("cond_tokenizer" in {stage.name for stage in build(config)}) == (name in MAPS)
    assert MAPS.get(name, config.condition[-1].kind) == config.condition[-1].kind
    factor = config.tokenizer.model.factor
    assert (config.tokenizer.image_size or config.shard.image_size) % factor == 0
    if name in MAPS:
        assert config.cond_tokenizer.model.factor == factor
        assert config.cond_tokenizer.image_size == config.tokenizer.image_size
    adversary = config.tokenizer.losses.discriminator
    assert adversary.weight == 0 or adversary.generator_start < config.tokenizer.steps
    assert config.prior.schedule_steps is None or config.prior.schedule_steps <= config.prior.steps or smoke


@pytest.mark.parametrize("name", CONFIGS)
def test_a_smoke_is_the_same_experiment_made_tiny_on_packaged_pictures(name: str) -> None:
    whole, tiny = (load_config(Config, CONFIGS[name], smoke=smoke) for smoke in (False, True))
    assert tiny.shard.source.kind in PACKAGED
    assert [it.kind for it in tiny.condition] == [it.kind for it in whole.condition]
    assert tiny.prior.model.kind == whole.prior.model.kind
    assert tiny.tokenizer.model.backbone.kind == whole.tokenizer.model.backbone.kind
    assert tiny.tokenizer.model.factor == whole.tokenizer.model.factor
    assert tiny.tokenizer.model.quantizer.kind == whole.tokenizer.model.quantizer.kind
    assert tiny.prior.steps <= 20 and tiny.tokenizer.steps <= 24 and tiny.sample.num_samples <= 40


@pytest.mark.slow
def test_a_smoke_runs_to_its_report(tmp_path: Path) -> None:
    """One with maps and the published backbone; `python -m tests.smoke` runs all."""
    config = load_config(Config, CONFIGS["superres"], ["cluster.threads=1"], smoke=True)
    figures = run_stages(config, "evaluate", tmp_path)["evaluate"].read_json("report.json")["figures"]
    assert 0 < figures["bits_per_token_held_out"]["value"] < 12
    assert figures["obedience_low_resolution"]["samples"] == 16
