"""Starting from trained weights: taken as they are or trained on, noticed by content, refused by key."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from pipeline.artifacts import Artifact, Source
from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError
from pipeline.runner import Runner, run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from pipeline.storage import Folder
from pipeline.workdir import Workdir
from stages.models.pretrained import start_of
from stages.models.priors.configs import GPTConfig
from stages.models.tokenizer import Tokenizer
from stages.models.tokenizer_config import EMAQuantizerConfig, LightBackboneConfig, TokenizerModelConfig
from stages.prior import PriorConfig, train_prior
from stages.tokenizer import TokenizerConfig, train_tokenizer
from stages.training.start import load_tokenizer_start
from tests.stages.models.interop import foreign
from tests.stages.tiny import tiny_shards
from tests.stages.training.corpora import make_corpus
from tests.stages.training.test_tokenizer_loop import ADVERSARY, LOSSES, MODEL, config_of

RUNTIME = LocalRuntime(ClusterConfig(threads=1))


def train(config: TokenizerConfig, shards: Artifact, workdir: Path) -> Artifact:
    start = start_of("tokenizer", config.from_checkpoint)
    stage = Stage("tokenizer", train_tokenizer, config, {"shards": Source("shards", tuple), **start})
    return run_stage(stage, {"shards": shards, **start}, str(workdir), RUNTIME)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_shards(tmp_path_factory.mktemp("shards"), pictures=(9, 6))


@pytest.fixture(scope="module")
def trained(shards: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return train(config_of(), shards, tmp_path_factory.mktemp("trained"))


def place_of(artifact: Artifact) -> str:
    return str(artifact.local("model.safetensors").parent)


def test_without_steps_a_tokenizer_is_taken_as_it_is(trained: Artifact, shards: Artifact, tmp_path: Path) -> None:
    taken = train(config_of(steps=0, from_checkpoint=place_of(trained)), shards, tmp_path)

    for name in ("model.safetensors", "config.json"):
        assert taken.local(name).read_bytes() == trained.local(name).read_bytes()
    assert taken.metrics["psnr"] == trained.metrics["psnr"]
    assert (taken.metrics["steps"], taken.notes["warnings"]) == (0, [])
    noted = taken.notes["from_checkpoint"]
    assert (noted["place"], noted["discriminator"], len(noted["digest"])) == (place_of(trained), True, 64)
    before, after = (load_file(artifact.local("training.safetensors")) for artifact in (trained, taken))
    judged = [name for name in before if name.startswith("discriminator/")]
    assert judged and all(torch.equal(before[name], after[name]) for name in judged)


def test_training_goes_on_from_the_weights_with_fresh_optimizers(
    trained: Artifact, shards: Artifact, tmp_path: Path
) -> None:
    config = config_of(steps=2, from_checkpoint=place_of(trained), validate_every=1)
    tuned = train(config, shards, tmp_path)
    history = [row for row in tuned.local("history.jsonl").read_text().splitlines() if "validation/psnr" in row]
    assert len(history) == 2
    before, after = (load_file(artifact.local("model.safetensors")) for artifact in (trained, tuned))
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before if name.startswith("decoder")}
    assert 0 < max(moved.values()) < 0.01, "two small steps away from the weights that it started from"
    assert tuned.metrics["psnr"] == pytest.approx(trained.metrics["psnr"], abs=1.5)


def test_a_checkpoint_is_known_by_its_content(trained: Artifact, shards: Artifact, tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(place_of(trained), here)
    shutil.copytree(here, tmp_path / "moved")

    def fingerprinted(place: Path, **settings: Any) -> dict[str, Any]:
        config = config_of(from_checkpoint=str(place), **settings)
        (source,) = start_of("tokenizer", config.from_checkpoint).values()
        return Stage("tokenizer", train_tokenizer, config, {"shards": Source("", tuple), "checkpoint": source}).recipe(
            {"shards": "0", "checkpoint": source.digest}
        )

    first = fingerprinted(here)
    assert fingerprinted(tmp_path / "moved") == first
    assert "from_checkpoint" not in first["config"]
    weights = load_file(here / "model.safetensors")
    (here / "manifest.json").unlink()
    assert fingerprinted(here) == first, "with or without a manifest"
    save_file({name: tensor + 1 for name, tensor in weights.items()}, here / "model.safetensors")
    assert fingerprinted(here)["inputs"]["checkpoint"] != first["inputs"]["checkpoint"]


def test_a_kept_tokenizer_stays_when_pictures_change_and_goes_when_its_checkpoint_does(
    trained: Artifact, shards: Artifact, tmp_path: Path
) -> None:
    config = config_of(steps=0, from_checkpoint=place_of(trained))
    start = start_of("tokenizer", config.from_checkpoint)
    feeding = Stage("shard", train_tokenizer, config, {"shards": Source("", tuple)})
    stage = Stage("tokenizer", train_tokenizer, config, {"shards": feeding, **start}, policy="keep")
    made = run_stage(stage, {"shards": shards, **start}, str(tmp_path), RUNTIME)

    runner, inputs = Runner([], Workdir(Folder.at(tmp_path))), made.recipe["inputs"]
    grown = {**made.recipe, "inputs": {**inputs, "shards": "grown"}}
    kept = runner._kept(stage, grown)
    assert kept is not None and kept.fingerprint == made.fingerprint
    assert runner._kept(stage, {**grown, "inputs": {**inputs, "checkpoint": "another"}}) is None


def test_keys_that_differ_are_named_with_both_values(trained: Artifact, shards: Artifact) -> None:
    model = TokenizerModelConfig(
        backbone=LightBackboneConfig(channels=(8, 16), residual_blocks=(1, 1), norm_groups=8),
        quantizer=EMAQuantizerConfig(num_codes=32, dim=4, decay=0.5),
    )
    dataset = shards.read_json("dataset.json")
    with pytest.raises(ConfigError) as error:
        load_tokenizer_start(config_of(model=model, from_checkpoint=place_of(trained)), {**dataset, "channels": 1})
    assert str(error.value).splitlines()[1:] == [
        "  tokenizer.model.backbone.norm_groups is 8, the checkpoint's 4",
        "  tokenizer.model.quantizer.num_codes is 32, the checkpoint's 24",
        "  shard.channels is 1, the checkpoint's 3",
    ]
    assert str(error.value).startswith(
        f"tokenizer.from_checkpoint {place_of(trained)} is another model; set these keys"
    )


def test_what_only_says_how_to_train_may_differ_and_a_larger_picture_is_remarked(
    trained: Artifact, shards: Artifact
) -> None:
    quantizer = MODEL.quantizer.model_copy(update={"decay": 0.5, "commitment": 1.0})
    model = MODEL.model_copy(update={"quantizer": quantizer})
    dataset = {**shards.read_json("dataset.json"), "image_size": 32}
    start, remarks = load_tokenizer_start(config_of(model=model, from_checkpoint=place_of(trained)), dataset)
    assert start.image_size == 16
    assert len(remarks) == 1 and "pictures of 16x16, these are of 32x32" in remarks[0]


def test_a_discriminator_of_another_size_starts_anew_and_says_so(trained: Artifact, shards: Artifact) -> None:
    losses = LOSSES.model_copy(update={"discriminator": ADVERSARY.model_copy(update={"base_channels": 16})})
    config = config_of(losses=losses, from_checkpoint=place_of(trained))
    start, remarks = load_tokenizer_start(config, shards.read_json("dataset.json"))
    assert start.judge_weights == {}
    assert remarks[0].endswith("to go on with it set losses.discriminator.base_channels=8")


def test_no_steps_need_something_to_start_from() -> None:
    with pytest.raises(ValidationError, match="steps 0 trains nothing"):
        TokenizerConfig(steps=0)
    with pytest.raises(ValidationError, match="steps 0 trains nothing"):
        PriorConfig(steps=0)


def test_the_stage_s_own_latest_result_is_no_place_to_start_from(shards: Artifact, tmp_path: Path) -> None:
    made = train(config_of(steps=1), shards, tmp_path)
    with pytest.raises(ConfigError, match=f"which the run is about to replace: set it to {made.folder}"):
        train(config_of(steps=2, from_checkpoint=str(tmp_path)), shards, tmp_path)
    train(config_of(steps=2, from_checkpoint=str(made.folder)), shards, tmp_path)


@pytest.mark.parametrize("place", ["nowhere", "nowhere.ckpt"])
def test_a_missing_checkpoint_is_named(tmp_path: Path, place: str) -> None:
    (source,) = start_of("prior", str(tmp_path / place)).values()
    with pytest.raises(ConfigError, match=f"prior.from_checkpoint: .*{place}"):
        _ = source.digest


def test_a_foreign_checkpoint_is_taken_where_the_configuration_says_the_same(shards: Artifact, tmp_path: Path) -> None:
    theirs = foreign.their_vqgan()
    path = foreign.save(theirs, tmp_path / "theirs.ckpt", foreign.vqgan_params())
    judge = ADVERSARY.model_copy(update={"norm": "batch", "num_layers": 2})
    losses = LOSSES.model_copy(update={"discriminator": judge})
    with pytest.raises(ConfigError, match=r"quantizer.num_codes is 24, the checkpoint's 40"):
        train(config_of(steps=0, from_checkpoint=str(path)), shards, tmp_path)
    taken = train(config_of(steps=0, from_checkpoint=str(path), model=foreign.MODEL, losses=losses), shards, tmp_path)

    assert taken.notes["from_checkpoint"]["discriminator"] is True
    ours, x_BCHW = Tokenizer.load(Path(place_of(taken))), 2 * foreign.pictures() - 1
    with torch.no_grad():
        assert torch.equal(ours.encode(x_BCHW), theirs.encode(x_BCHW)[2][2])


PRIOR: dict[str, Any] = {
    "model": GPTConfig(num_layers=1, num_heads=2, width=16),
    "batch_size": 8,
    "warmup_steps": 1,
    "validate_every": 5,
}


def train_on(tokens: Artifact, workdir: Path, **settings: Any) -> Artifact:
    config = PriorConfig(**{**PRIOR, **settings})
    start = start_of("prior", config.from_checkpoint)
    stage = Stage("prior", train_prior, config, {"tokens": Source("tokens", tuple), **start})
    return run_stage(stage, {"tokens": tokens, **start}, str(workdir), RUNTIME)


def test_a_prior_is_taken_as_it_is_trained_on_or_refused(tmp_path: Path) -> None:
    tokens = make_corpus(tmp_path)
    first = train_on(tokens, tmp_path, steps=10)
    taken = train_on(tokens, tmp_path / "taken", steps=0, from_checkpoint=place_of(first))
    assert taken.local("model.safetensors").read_bytes() == first.local("model.safetensors").read_bytes()
    assert taken.metrics["bits_per_token"] == first.metrics["bits_per_token"]
    assert (taken.metrics["steps"], taken.notes["warnings"]) == (0, [])
    assert taken.notes["from_checkpoint"]["place"] == place_of(first)

    tuned = train_on(tokens, tmp_path / "tuned", steps=10, from_checkpoint=place_of(first))
    assert tuned.metrics["bits_per_token"] < first.metrics["bits_per_token"]

    other = {"model": GPTConfig(num_layers=2, num_heads=4, width=16, dropout=0.5), "from_checkpoint": place_of(first)}
    with pytest.raises(ConfigError) as error:
        train_on(make_corpus(tmp_path, promised={"codebook_size": 9}), tmp_path / "refused", **other)
    assert str(error.value).splitlines()[1:] == [
        "  prior.model.num_layers is 2, the checkpoint's 1",
        "  prior.model.num_heads is 4, the checkpoint's 2",
        "  tokenizer.model.quantizer.num_codes is 9, the checkpoint's 8",
    ]
