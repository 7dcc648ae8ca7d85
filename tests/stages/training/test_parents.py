"""Trainings that start from the version in use: for fewer steps where its weights fit, else from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.artifacts import Artifact, Source
from pipeline.config import ClusterConfig
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from pipeline.versions.registry import Published
from stages.models.priors.configs import GPTConfig
from stages.models.weights import read_weights
from stages.prior import PriorConfig, train_prior
from stages.tokenizer import MapTokenizerConfig, TokenizerConfig, train_tokenizer
from stages.training.parents import with_start
from tests.stages.tiny import tiny_shards
from tests.stages.training.corpora import make_corpus
from tests.stages.training.test_tokenizer_loop import config_of

RUNTIME = LocalRuntime(ClusterConfig(threads=1))
PRIOR = PriorConfig(
    model=GPTConfig(num_layers=1, num_heads=2, width=16),
    steps=12,
    batch_size=8,
    learning_rate=1e-3,
    warmup_steps=2,
    schedule_steps=100,
    validate_every=4,
)


def published(**artifacts: Artifact) -> Published:
    return Published(1, {}, artifacts)


def run(work: Any, config: Any, parent: Published | None, workdir: Path, **inputs: Artifact) -> Artifact:
    config, start = with_start(config, parent)
    stage = Stage(config.section, work, config, {**inputs, **start}, policy=config.policy)
    return run_stage(stage, {**inputs, **start}, str(workdir), RUNTIME)


def train(tokens: Artifact, workdir: Path, parent: Published | None = None, **changes: Any) -> Artifact:
    return run(train_prior, PRIOR.model_copy(update=changes), parent, workdir, tokens=tokens)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def parent(tokens: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Published:
    return published(prior=train(tokens, tmp_path_factory.mktemp("parent")), encode=tokens)


def test_a_warm_prior_starts_where_the_parent_ended_and_trains_the_warm_steps(tokens, parent, tmp_path):
    still = train(tokens, tmp_path, parent, policy="warm", warm_steps=1, learning_rate=1e-9, min_learning_rate=0.0)
    before, after = (read_weights(it.local("model.safetensors")) for it in (parent.artifacts["prior"], still))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert still.metrics["steps"] == 1 and still.notes["from_checkpoint"]["digest"] == parent.artifacts["prior"].digest
    assert {"checkpoint", "parent_tokens"} <= set(still.notes["inherited"])
    warm = train(tokens, tmp_path, parent, policy="warm")
    assert warm.metrics["steps"] == 3, "a quarter of 12"
    assert warm.metrics["bits_per_token"] < parent.artifacts["prior"].metrics["bits_per_token"]


@pytest.mark.parametrize(
    ("promised", "words"),
    [
        ({"classes": ["falling", "rising", "level"]}, "it knows 2 classes, here there are 3"),
        ({"tokenizer": "77c1" * 16}, "it learnt the tokens of tokenizer 3fa93fa93fa9, these are of 77c177c177c1"),
    ],
)
def test_a_prior_of_other_tokens_or_classes_is_not_taken(parent, tmp_path, promised, words):
    others = {"table_tokenizer": promised["tokenizer"]} if "tokenizer" in promised else {}
    tokens = make_corpus(tmp_path / "others", promised=promised, **others)
    made = train(tokens, tmp_path, parent, policy="warm")
    assert made.metrics["steps"] == 12, "from scratch, and as long"
    assert any(words in warning for warning in made.notes["warnings"])
    assert words in made.notes["from_checkpoint"]["refused"]


def test_a_prior_of_another_architecture_is_not_taken(tokens, parent, tmp_path):
    made = train(tokens, tmp_path, parent, policy="warm", model=GPTConfig(num_layers=2, num_heads=2, width=16))
    assert made.metrics["steps"] == 12 and "prior.model.num_layers" in made.notes["from_checkpoint"]["refused"]


def test_without_a_parent_it_trains_from_scratch_says_so_and_is_the_same(tokens, parent, tmp_path):
    made = train(tokens, tmp_path, None, policy="warm", warm_steps=5)
    assert made.metrics["steps"] == 12
    assert made.notes["warnings"] == ["prior.policy is warm, but no version is in use yet: it is trained from scratch"]
    assert made.fingerprint == parent.artifacts["prior"].fingerprint, "the policy alone changes no result"


def test_a_tokenizer_is_fine_tuned_with_its_discriminator_or_trained_anew_where_it_is_another(tmp_path):
    shards = tiny_shards(tmp_path / "shards", pictures=(9, 6))
    first = run(train_tokenizer, config_of(steps=4), None, tmp_path, shards=shards)
    parent = published(tokenizer=first)
    tuned = run(train_tokenizer, config_of(steps=4, policy="finetune"), parent, tmp_path, shards=shards)
    assert (tuned.metrics["steps"], tuned.notes["from_checkpoint"]["discriminator"]) == (1, True)
    assert tuned.recipe["config"]["finetune_steps"] == 1 and "finetune_steps" not in first.recipe["config"]
    config = config_of(steps=4, policy="finetune", finetune_steps=2)
    other = config.model_copy(
        update={
            "model": config.model.model_copy(
                update={"quantizer": config.model.quantizer.model_copy(update={"num_codes": 3})}
            )
        }
    )
    anew = run(train_tokenizer, other, parent, tmp_path, shards=shards)
    assert anew.metrics["steps"] == 4 and "num_codes" in anew.notes["from_checkpoint"]["refused"]


def test_fine_tuning_scales_the_schedule_and_lets_the_discriminator_go_on():
    started = TokenizerConfig(policy="finetune").going_on().started_from("/somewhere")
    assert (started.steps, started.optimizer.schedule_steps, started.losses.discriminator.start) == (800, 800, 0)
    short = TokenizerConfig(policy="finetune", finetune_steps=5).going_on().started_from("/somewhere")
    assert short.optimizer.schedule_steps == 21, "it must rise before it falls"
    warm = PriorConfig(policy="warm", warm_steps=70).going_on().started_from("/somewhere")
    assert (warm.steps, warm.schedule_steps, warm.from_checkpoint) == (70, 70, "/somewhere")


def test_a_named_checkpoint_goes_before_the_parent_and_keep_takes_no_weights(parent, tmp_path):
    maps = MapTokenizerConfig(policy="finetune", finetune_steps=9)
    _, start = with_start(
        maps.model_copy(update={"from_checkpoint": str(tmp_path)}), published(cond_tokenizer=parent.artifacts["prior"])
    )
    assert isinstance(start["checkpoint"], Source)
    alone, nothing = with_start(maps, published())
    assert (alone.finetune_steps, nothing) == (None, {})
    assert with_start(TokenizerConfig(policy="keep"), published(tokenizer=parent.artifacts["prior"]))[1] == {}
