"""The sample stage: what is drawn, only what is missing, refusals, and the same bytes after a crash."""

import math
import multiprocessing
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.artifacts import Artifact
from pipeline.errors import ConfigError, StageError
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from pipeline.units import Unit
from stages.data.captions import Captions
from stages.data.images import decode_image, to_uint8
from stages.data.shards import ShardReader, open_split
from stages.data.tables import read_table, read_tokens
from stages.encode import EncodeWork, encode
from stages.maps import make_maps
from stages.models.priors.load import load_prior
from stages.models.tokenizer import Tokenizer
from stages.models.vocabulary import TokenCorpus
from stages.sample import SampleConfig, sample
from stages.sampling.plan import plan_ids
from stages.sampling.unit import UnitDrawer
from tests.sample_and_kill import drawn_and_killed
from tests.stages.tiny import tiny_prior, tiny_shards, tiny_tokenizer

CONFIG = SampleConfig(num_samples=8, batch_size=3, samples_per_unit=4, seed=11)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    workdir = tmp_path_factory.mktemp("sample")
    tokenizer = tiny_tokenizer(workdir)
    return {"tokenizer": tokenizer, "prior": tiny_prior(workdir, tokenizer)}


def run(inputs: dict[str, Artifact], workdir: Path, **changes: Any) -> Artifact:
    stage = Stage("sample", sample, SampleConfig(**{**CONFIG.model_dump(), **changes}), inputs)  # type: ignore[arg-type]
    return run_stage(stage, inputs, str(workdir), LocalRuntime())


def table(artifact: Artifact) -> dict[str, list[Any]]:
    parts = [read_table(artifact.local(entry.path)) for _, entry in artifact.unit_files(".parquet")]
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def test_classes_are_drawn_in_turn_and_described_in_the_table(made: dict[str, Artifact], tmp_path: Path) -> None:
    artifact = run(made, tmp_path)
    rows = table(artifact)
    assert rows["id"] == list(range(8))
    assert rows["key"][7] == "s00000007"
    assert rows["seed"] == [11] * 8
    assert rows["label"] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert rows["class"] == [("cats", "dogs", "owls")[n % 3] for n in range(8)]
    assert artifact.metrics["samples"] == 8
    assert artifact.metrics["classes"] == 3
    assert artifact.notes["samples_per_second"] > 0


def test_the_table_holds_tokens_and_their_likelihood_under_the_prior(made: dict[str, Artifact], tmp_path: Path) -> None:
    artifact = run(made, tmp_path, temperature=0.8, top_k=10, guidance=2.0)
    rows = table(artifact)
    prior = load_prior(made["prior"].local("model.safetensors").parent)
    tokens_NT = torch.from_numpy(np.stack(rows["tokens"])).long()
    with torch.no_grad():
        _, nats_NT = prior.loss(prior.vocabulary.condition(torch.tensor(rows["label"])), tokens_NT)
    np.testing.assert_allclose(rows["log_likelihood"], -nats_NT.sum(1).numpy(), rtol=1e-5)
    assert artifact.metrics["bits_per_token"] == pytest.approx(nats_NT.mean().item() / math.log(2), rel=1e-5)


def test_pictures_are_the_decoded_tokens_in_shard_format(made: dict[str, Artifact], tmp_path: Path) -> None:
    artifact = run(made, tmp_path)
    rows = table(artifact)
    tokenizer = Tokenizer.load(made["tokenizer"].local("model.safetensors").parent)
    readers = [ShardReader(shard) for shard in open_split(artifact, "sample")]
    samples = [reader[i] for reader in readers for i in range(len(reader))]
    assert [row.key for row in samples] == rows["key"]
    assert [row.label for row in samples] == rows["label"]
    assert [row.caption for row in samples] == rows["class"]
    for drawn, tokens_T in zip(samples, rows["tokens"], strict=True):
        expected_HWC = to_uint8(tokenizer.decode(torch.from_numpy(np.array(tokens_T)).long().view(1, 2, 2)))[0]
        difference_HWC = decode_image(drawn.image, 3).astype(int) - expected_HWC
        assert abs(difference_HWC).max() <= 1  # another batch shape may round the other way


def test_more_samples_draw_only_the_new_ones(made: dict[str, Artifact], tmp_path: Path) -> None:
    before, after = run(made, tmp_path), run(made, tmp_path, num_samples=12)
    assert after.notes["units_reused"] == 2
    assert after.units[:2] == before.units
    assert table(after)["id"] == list(range(12))
    assert before.notes["warnings"] == after.notes["warnings"] == []


def test_a_ragged_number_draws_only_the_ragged_unit_again_and_says_so(
    made: dict[str, Artifact], tmp_path: Path
) -> None:
    ragged, full = run(made, tmp_path, num_samples=6), run(made, tmp_path, num_samples=8)
    assert "num_samples 6 is not a multiple of samples_per_unit 4" in ragged.notes["warnings"][0]
    assert full.notes["units_reused"] == 1
    assert table(ragged)["id"] == list(range(6))
    for column in ("label", "log_likelihood"):
        assert table(full)[column][:6] == table(ragged)[column]


def plan(config: SampleConfig) -> list[Unit]:
    return plan_ids(
        {**config.drawing(), "prior": "p"},
        config.num_samples,
        config.samples_per_unit,
        seed=config.seed,
        keep=config.keep,
        classes=["a", "b"],
        labels=[0, 1],
        given=None,
        samples_per_condition=1,
    )


def test_recipes_do_not_know_how_many_samples_there_are() -> None:
    few, many = (plan(CONFIG.model_copy(update={"num_samples": number})) for number in (8, 80))
    assert few == many[:2]
    assert plan(CONFIG.model_copy(update={"seed": 12}))[0].recipe != few[0].recipe


def test_every_unit_has_all_classes_in_turn() -> None:
    units = plan(CONFIG.model_copy(update={"num_samples": 12}))
    assert [unit.payload.labels for unit in units] == [[0, 1, 0, 1]] * 3


def test_keys_that_are_not_set_do_not_touch_recipes() -> None:
    (unit, *_) = plan(CONFIG)
    expected = {"seed", "temperature", "top_k", "top_p", "guidance", "batch_size", "threads"}
    assert set(unit.recipe) == expected | {"prior", "classes", "first_id", "count"}


def test_samples_do_not_depend_on_how_they_are_cut_into_units(made: dict[str, Artifact], tmp_path: Path) -> None:
    one, other = run(made, tmp_path), run(made, tmp_path, samples_per_unit=5)
    assert table(one)["log_likelihood"] == table(other)["log_likelihood"]
    assert np.array_equal(table(one)["tokens"], table(other)["tokens"])


def test_workers_in_any_order_give_the_same_bytes(made: dict[str, Artifact], tmp_path: Path) -> None:
    class TwoWorkersBackwards(LocalRuntime):
        def map_units(self, store: Any, make_worker: Any, units: Any, reporter: Any, *, gpu: bool = True) -> Any:
            workers = [make_worker("cpu"), make_worker("cpu")]
            for n, unit in enumerate(reversed(units)):
                yield store.make(unit, workers[n % 2])

    config = CONFIG.model_copy(update={"num_samples": 12})
    stage = Stage("sample", sample, config, made)  # type: ignore[arg-type]
    shared = run_stage(stage, made, str(tmp_path / "shared"), TwoWorkersBackwards())
    assert shared.digest == run(made, tmp_path / "whole", num_samples=12).digest


def sample_and_die(inputs: dict[str, Artifact], workdir: Path) -> None:
    original = UnitDrawer.__call__

    def killed_after_writing_the_second(drawer: UnitDrawer, unit: Unit, folder: Path) -> Any:
        counts = original(drawer, unit, folder)
        if unit.name == "sample-000001":
            os.kill(os.getpid(), signal.SIGKILL)
        return counts

    UnitDrawer.__call__ = killed_after_writing_the_second  # type: ignore[method-assign]
    run(inputs, workdir)


@pytest.mark.slow
def test_killed_sample_resumes_to_the_same_bytes(made: dict[str, Artifact], tmp_path: Path) -> None:
    uninterrupted = run(made, tmp_path / "whole")
    child = multiprocessing.get_context("spawn").Process(target=sample_and_die, args=(made, tmp_path / "killed"))
    child.start()
    child.join(300)
    assert child.exitcode == -signal.SIGKILL
    resumed = run(made, tmp_path / "killed")
    assert resumed.notes["units_reused"] == 1
    assert resumed.digest == uninterrupted.digest
    assert resumed.files == uninterrupted.files


@pytest.mark.thorough
def test_2000_samples_then_3000_draw_each_unit_once_whatever_was_killed(
    made: dict[str, Artifact], tmp_path: Path
) -> None:
    config = SampleConfig(num_samples=2000, samples_per_unit=100, batch_size=50)
    found = drawn_and_killed(made, tmp_path, config, then=3000, kills=2, seed=1)
    assert (found["units_of_first"], found["units_of_more"]) == (20, 30)
    assert 2 <= found["drawn_before_the_last_start"] <= found["reused_by_the_last_start"] < 20
    assert found["reused_by_more"] == 20
    assert found["drawn_twice"] == 0
    # A unit that was committed just before a kill had no time to be announced.
    assert 30 - found["killed_in_the_middle"] <= found["drawn"] <= 30
    assert found["equal"]


def test_chosen_classes_alone_are_drawn(made: dict[str, Artifact], tmp_path: Path) -> None:
    artifact = run(made, tmp_path, classes=("owls", "cats"))
    assert table(artifact)["label"] == [2, 0] * 4
    summary = artifact.read_json("samples.json")
    assert summary["classes"] == {"owls": 4, "cats": 4}
    assert summary["num_samples"] == sum(Counter(summary["classes"]).values())
    assert summary["tokenizer"] == made["tokenizer"].digest


def test_a_prior_without_classes_draws_unlabelled_pictures(made: dict[str, Artifact], tmp_path: Path) -> None:
    prior = tiny_prior(tmp_path, made["tokenizer"], classes=())
    artifact = run({**made, "prior": prior}, tmp_path)
    assert table(artifact)["label"] == [-1] * 8
    assert table(artifact)["class"] == [""] * 8
    assert artifact.metrics["classes"] == 0
    assert Image.open(artifact.local("grid.png")).width > 8 * 64


def test_the_grid_has_a_row_for_each_class(made: dict[str, Artifact], tmp_path: Path) -> None:
    grid = Image.open(run(made, tmp_path).local("grid.png"))
    assert grid.height == 2 * 16 + 3 * 64 + 2 * 6
    assert grid.getpixel((0, 0)) == (255, 255, 255)


def test_an_unknown_class_is_refused_with_the_known_ones(made: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="knows no bats; it knows cats, dogs, owls"):
        run(made, tmp_path, classes=("cats", "bats"))


def test_guidance_needs_a_prior_with_condition_dropout(made: dict[str, Artifact], tmp_path: Path) -> None:
    undropped = tiny_prior(tmp_path, made["tokenizer"], condition_dropout=0.0)
    with pytest.raises(ConfigError, match=r"condition_dropout was 0: set sample\.guidance=1"):
        run({**made, "prior": undropped}, tmp_path, guidance=2.0)
    unlabelled = tiny_prior(tmp_path, made["tokenizer"], classes=())
    with pytest.raises(ConfigError, match="it has no condition"):
        run({**made, "prior": unlabelled}, tmp_path, guidance=2.0)


def test_another_tokenizer_than_the_priors_is_refused(made: dict[str, Artifact], tmp_path: Path) -> None:
    other = tiny_tokenizer(tmp_path, seed=1)
    with pytest.raises(
        StageError, match=f"learned tokens of tokenizer .*{other.digest[:12]}: run --stages encode,prior"
    ):
        run({**made, "tokenizer": other}, tmp_path)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A prior of classes, captions and maps, and what it was told of 10 pictures."""
    workdir = tmp_path_factory.mktemp("told")
    condition = [
        "class",
        {"kind": "caption", "length": 5, "vocabulary_size": 260},
        {"kind": "low_resolution", "factor": 4},
    ]
    config = EncodeWork.model_validate({"batch_size": 4, "condition": condition})
    tokenizer, shards = tiny_tokenizer(workdir), tiny_shards(workdir)

    def made_by(name: str, work: Any, config: Any, **inputs: Artifact) -> Artifact:
        return run_stage(Stage(name, work, config, inputs), inputs, str(workdir), LocalRuntime())  # type: ignore[arg-type]

    maps = made_by("maps", make_maps, config.condition[2], shards=shards)
    encoded = {"tokenizer": tokenizer, "maps": maps, "cond_tokenizer": tiny_tokenizer(workdir, seed=1)}
    tokens = made_by("encode", encode, config, shards=shards, **encoded)
    segments = TokenCorpus.model_validate(tokens.read_json("tokens.json")).condition
    prior = tiny_prior(workdir, tokenizer, condition=segments)
    return {"tokenizer": tokenizer, "prior": prior, "tokens": tokens, "maps": maps}


def test_a_prior_that_knows_more_than_classes_draws_from_held_out_pictures(
    told: dict[str, Artifact], tmp_path: Path
) -> None:
    rows = table(run(told, tmp_path, samples_per_condition=3, guidance=2.0))
    held_out = read_tokens(told["tokens"].local("val-000000.parquet"))
    taken = [0, 0, 0, 1, 1, 1, 0, 0]
    assert rows["condition_key"] == [held_out.keys[row] for row in taken]
    assert rows["caption"] == [held_out.captions[row] for row in taken]
    assert rows["label"] == held_out.labels[taken].tolist()
    assert np.array_equal(rows["condition_tokens"], held_out.condition_NC[taken])
    prior = load_prior(told["prior"].local("model.safetensors").parent)
    tokens_NT, condition_NC = (torch.from_numpy(np.stack(rows[name])).long() for name in ("tokens", "condition_tokens"))
    with torch.no_grad():
        _, nats_NT = prior.loss(condition_NC, tokens_NT)
    np.testing.assert_allclose(rows["log_likelihood"], -nats_NT.sum(1).numpy(), rtol=1e-5)


def test_the_grid_shows_a_map_beside_its_samples(told: dict[str, Artifact], tmp_path: Path) -> None:
    artifact = run(told, tmp_path, samples_per_condition=4)
    with Image.open(artifact.local("grid.png")) as opened:
        grid = np.asarray(opened)
    assert grid.shape[0] == 2 * 16 + 2 * 64 + 6
    reader = ShardReader(open_split(told["maps"], "val")[0])
    expected = decode_image(reader.read_image(0), 3).repeat(4, 0).repeat(4, 1)
    left = grid.shape[1] - 16 - 5 * 64 - 4 * 6
    assert np.array_equal(grid[16:80, left : left + 64], expected)


def test_captions_of_the_config_are_drawn_in_turn_and_all_else_is_null(
    told: dict[str, Artifact], tmp_path: Path
) -> None:
    texts = ("a red heart", "picture 1")
    artifact = run(told, tmp_path, captions=texts, samples_per_condition=1)
    rows = table(artifact)
    assert rows["caption"] == list(texts) * 4
    vocabulary = load_prior(told["prior"].local("model.safetensors").parent).vocabulary
    condition_NC = torch.from_numpy(np.stack(rows["condition_tokens"])).long()
    captions = Captions(told["tokens"].local("captions.json").read_text())
    assert vocabulary.values(condition_NC, "caption").tolist() == captions.values(texts, 5).tolist() * 4
    for kind in ("class", "low_resolution"):
        assert set(vocabulary.values(condition_NC, kind).flatten().tolist()) == {-1}
    assert rows["label"] == [-1] * 8
    assert [ShardReader(shard)[0].caption for shard in open_split(artifact, "sample")] == ["a red heart"] * 2


def test_more_samples_of_conditions_draw_only_the_new_ones(told: dict[str, Artifact], tmp_path: Path) -> None:
    run(told, tmp_path)
    assert run(told, tmp_path, num_samples=12).notes["units_reused"] == 2
    assert run(told, tmp_path, samples_per_condition=1).notes["units_reused"] == 0


def test_choices_that_do_not_suit_the_prior_are_refused(
    made: dict[str, Artifact], told: dict[str, Artifact], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="told of class, caption, low_resolution, and a class alone is not"):
        run(told, tmp_path, classes=("cats",))
    with pytest.raises(ConfigError, match="told of class, not of captions: train it with condition=caption"):
        run(made, tmp_path, captions=("a cat",))
