"""The tokenizer's training: it learns, and killing, pausing, splitting it over ranks does not change what it learns."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from pipeline.artifacts import Artifact
from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError, DataError, Interrupted, StageError
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime, Rank
from pipeline.stage import Stage
from pipeline.storage import Folder
from stages.models.losses.configs import DiscriminatorConfig, LossConfig, PerceptualConfig
from stages.models.quantizers.configs import GumbelQuantizerConfig, UsedCodesConfig
from stages.models.tokenizer import Tokenizer
from stages.models.tokenizer_config import EMAQuantizerConfig, LightBackboneConfig, TokenizerModelConfig
from stages.tokenizer import doubts, train_tokenizer
from stages.training.checkpoints import load_state
from stages.training.movement import WATCHED_UPDATES, MovementWatch
from stages.training.tokenizer import TokenizerJob, TokenizerTrainer, train_tokenizer_loop
from stages.training.tokenizer_config import TokenizerConfig, TokenizerOptimizerConfig
from stages.training.tokenizer_data import check_data
from tests.stages.tiny import TinyConfig, tiny_shards
from tests.stages.training.gangs import RecordingReporter, processes, rank_of, run_gang

MODEL = TokenizerModelConfig(
    backbone=LightBackboneConfig(channels=(8, 16), residual_blocks=(1, 1), norm_groups=4),
    quantizer=EMAQuantizerConfig(num_codes=24, dim=4),
)
ADVERSARY = DiscriminatorConfig(base_channels=8, num_layers=1, start=4, warmup_steps=3, ramp_steps=4)
LOSSES = LossConfig(perceptual=PerceptualConfig(stages=(0,)), discriminator=ADVERSARY)


def config_of(**settings: Any) -> TokenizerConfig:
    optimizer = TokenizerOptimizerConfig(learning_rate=3e-3, warmup_steps=4, schedule_steps=40)
    keys = {"model": MODEL, "losses": LOSSES, "optimizer": optimizer, "steps": 24, "batch_size": 7}
    return TokenizerConfig(**{**keys, "validate_every": 8, "record_every": 5, **settings})


AT_ONCE = ClusterConfig(checkpoint_every=7)


def job_at(place: Path, shards: Artifact, cluster: ClusterConfig = AT_ONCE, **settings: Any) -> TokenizerJob:
    return TokenizerJob(config_of(**settings), shards, Folder.at(place), cluster)


EVERYTHING = {
    "losses": LOSSES.model_copy(
        update={
            "discriminator": ADVERSARY.model_copy(
                update={"norm": "spectral", "loss": "non_saturating", "lecam_weight": 0.1, "clip_gradient": 0.1}
            )
        }
    ),
    "ema_decay": 0.9,
    "optimizer": TokenizerOptimizerConfig(learning_rate=3e-3, schedule_steps=40, schedule="linear", clip_gradient=0.5),
}
IN_PARTS = ClusterConfig(checkpoint_every=7, micro_batch=3, activation_checkpointing=True)


def train(job: TokenizerJob, reporter: RecordingReporter | None = None, attempt: str = "000001-000") -> dict[str, Any]:
    return train_tokenizer_loop(job, rank_of(attempt=attempt), reporter or RecordingReporter())


def result_bytes(job: TokenizerJob, trained: dict[str, Any]) -> dict[str, bytes]:
    folder = job.folder / trained["result"]
    return {name: folder.read(name) for name in folder.names()}


def rows_of(files: dict[str, bytes]) -> list[dict[str, float]]:
    return [json.loads(line) for line in files["history.jsonl"].splitlines()]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_shards(tmp_path_factory.mktemp("shards"), pictures=(9, 6))


@pytest.fixture(scope="module")
def uninterrupted(shards: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    job = job_at(tmp_path_factory.mktemp("uninterrupted"), shards)
    return result_bytes(job, train(job))


@pytest.mark.slow
def test_the_stage_learns_to_reconstruct_and_leaves_a_loadable_tokenizer(tmp_path: Path) -> None:
    place = tiny_shards(tmp_path, pictures=(9, 6))
    optimizer = TokenizerOptimizerConfig(learning_rate=5e-3, schedule_steps=150)
    config = config_of(steps=150, validate_every=50, batch_size=12, optimizer=optimizer)
    stage = Stage("tokenizer", train_tokenizer, config, {"shards": Stage("shard", _unused, TinyConfig(), {})})

    artifact = run_stage(stage, {"shards": place}, str(tmp_path), LocalRuntime(ClusterConfig(threads=1)))

    names = {entry.path for entry in artifact.own_files}
    assert names == {
        "model.safetensors",
        "config.json",
        "training.safetensors",
        "training.json",
        "history.jsonl",
        "reconstructions.png",
    }
    rows = [json.loads(line) for line in artifact.local("history.jsonl").read_text().splitlines()]
    losses = [row["train/reconstruction"] for row in rows if "train/reconstruction" in row]
    assert losses[-1] < 0.6 * losses[0]
    assert artifact.metrics["psnr"] == rows[-1]["validation/psnr"]
    assert artifact.metrics["steps"] == 150
    assert artifact.notes["pictures_per_second"] > 0
    tokenizer = Tokenizer.load(artifact.local("model.safetensors").parent)
    assert tokenizer.config == MODEL
    assert tokenizer.grid == (4, 4)
    picture = Image.open(io.BytesIO(artifact.local("reconstructions.png").read_bytes()))
    assert picture.size == (2 * (32 + 6) + 6, 2 * 32 + 1 + 12)  # two pictures of 16 pixels, twice as large


def _unused(config: TinyConfig, *, output: Any, runtime: Any) -> dict[str, int]:
    return {}


def test_the_discriminator_begins_first_and_the_generator_feels_it_later(uninterrupted: dict[str, bytes]) -> None:
    rows = {row["step"]: row for row in rows_of(uninterrupted) if "train/l1" in row}
    assert "train/discriminator" in rows[5] and "train/adaptive_weight" not in rows[5]
    assert rows[5]["train/adversarial_weight"] == 0.0
    assert 0 < rows[10]["train/adversarial_weight"] < rows[15]["train/adversarial_weight"] == ADVERSARY.weight
    assert rows[10]["train/adaptive_weight"] > 0
    for row in rows.values():
        assert 1 <= row["train/perplexity"] <= row["train/codes_used"] <= 24
        assert row["train/skipped_steps"] == 0
    measured = [row["step"] for row in rows_of(uninterrupted) if "validation/psnr" in row]
    assert measured == [8, 16, 24]


def test_paused_and_resumed_equals_uninterrupted_bit_for_bit(
    shards: Artifact, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    job = job_at(tmp_path, shards)
    with pytest.raises(Interrupted):
        train(job, RecordingReporter(stop_after=11))
    again = RecordingReporter()

    trained = train(job, again, "000002-000")

    assert result_bytes(job, trained) == uninterrupted
    assert again.steps_seen[0] == 15


@pytest.mark.slow
def test_with_everything_on_and_in_micro_batches_resumed_equals_uninterrupted(shards: Artifact, tmp_path: Path) -> None:
    straight, paused = (job_at(tmp_path / name, shards, IN_PARTS, **EVERYTHING) for name in ("straight", "paused"))
    trained = train(straight)
    with pytest.raises(Interrupted):
        train(paused, RecordingReporter(stop_after=11))

    files = result_bytes(straight, trained)
    assert result_bytes(paused, train(paused, attempt="000002-000")) == files
    assert trained["notes"]["micro_batch"] == 3
    (row,) = [row for row in rows_of(files) if row["step"] == 20 and "train/l1" in row]
    for name in ("lecam", "discriminator_gradient_norm", "adaptive_weight", "adversarial"):
        assert row[f"train/{name}"] > 0, name


def test_the_average_is_saved_and_validated_and_the_state_holds_the_raw_weights_too(
    shards: Artifact, tmp_path: Path
) -> None:
    job = job_at(tmp_path, shards, **EVERYTHING)
    folder = job.folder / train(job)["result"]
    saved = load_file(folder.local("model.safetensors"))
    state = load_state(folder.local("training.json").parent, "training")

    raw, average = state["tokenizer"], state["average"]["network"]
    for name, value in saved.items():
        assert torch.equal(average[name], value), name
        assert torch.equal(raw[name], value) == name.startswith("quantize."), name
    assert state["average"]["updates"] == 24
    assert state["logits"]["updates"] == 24 - ADVERSARY.start


def test_killed_equals_uninterrupted_bit_for_bit(
    shards: Artifact, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    job = job_at(tmp_path, shards)
    child = processes().Process(target=_train_slowly, args=(job, tmp_path / "mark"))
    child.start()
    deadline = time.monotonic() + 120
    while not (tmp_path / "mark").exists():
        assert child.is_alive() and time.monotonic() < deadline, "the child does not train"
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.join()

    assert child.exitcode == -signal.SIGKILL
    assert result_bytes(job, train(job, attempt="000002-000")) == uninterrupted


def _train_slowly(job: TokenizerJob, mark: Path) -> None:
    train_tokenizer_loop(job, rank_of(), _Slow(mark))


class _Slow(RecordingReporter):
    """Leaves a mark after 9 steps, beyond the first checkpoint, and then takes its time."""

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self.mark = mark

    def stopping(self) -> bool:
        self.questions += 1
        if self.questions == 9:
            self.mark.touch()
        if self.questions >= 9:
            time.sleep(1)
        return False


def test_two_ranks_learn_what_one_rank_learns(
    shards: Artifact, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    """Slices of 3 and 4 pictures; the adversarial term and codebook restarts included."""
    job = job_at(tmp_path, shards)
    trained = run_gang(2, _train_on_rank, job)[0]
    files = result_bytes(job, trained)
    one, two = rows_of(uninterrupted), rows_of(files)

    assert [row["step"] for row in two] == [row["step"] for row in one]
    for name in ("l1", "perceptual", "discriminator", "adaptive_weight", "logits_fake", "perplexity"):
        column = [[row[f"train/{name}"] for row in rows if f"train/{name}" in row] for rows in (one, two)]
        np.testing.assert_allclose(column[1], column[0], rtol=2e-2, atol=2e-3, err_msg=name)
    (tmp_path / "one.safetensors").write_bytes(uninterrupted["model.safetensors"])
    expected = load_file(tmp_path / "one.safetensors")
    for name, value in load_file(job.folder.local(f"{trained['result']}/model.safetensors")).items():
        torch.testing.assert_close(value, expected[name], rtol=5e-2, atol=2e-2)


@pytest.mark.slow
def test_two_ranks_resume_bit_for_bit(shards: Artifact, tmp_path: Path) -> None:
    """With everything on; in micro-batches of 3, of which the slice of 3 has one and that of 4 two."""
    cluster = ClusterConfig(checkpoint_every=7, micro_batch=3)
    straight, paused = (job_at(tmp_path / name, shards, cluster, **EVERYTHING) for name in ("straight", "paused"))
    whole = run_gang(2, _train_on_rank, straight)[0]
    run_gang(2, _train_on_rank, job_at(tmp_path / "paused", shards, cluster, steps=13, **EVERYTHING))
    resumed = run_gang(2, _train_on_rank, paused, attempt="000002-000")[0]

    assert result_bytes(paused, resumed) == result_bytes(straight, whole)


def _train_on_rank(rank: Rank, job: TokenizerJob) -> dict[str, Any]:
    return train_tokenizer_loop(job, rank, RecordingReporter())


def test_raising_steps_goes_on_to_what_training_straight_gives(
    shards: Artifact, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    train(job_at(tmp_path, shards, steps=13))  # not where it validates: its last look must leave no trace
    reporter = RecordingReporter()
    longer = job_at(tmp_path, shards)

    assert result_bytes(longer, train(longer, reporter)) == uninterrupted
    assert reporter.steps_seen[0] == 15


def test_a_step_whose_gradient_is_not_finite_changes_nothing_and_too_many_end_the_run(
    shards: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = LOSSES.model_copy(update={"max_skipped_steps": 2})
    job = job_at(tmp_path, shards, losses=losses, steps=20)
    plain, dumps = TokenizerTrainer.update, []

    def poisoned(self: TokenizerTrainer, x_BCHW: torch.Tensor) -> Any:
        if self.state.step >= 8:
            x_BCHW = x_BCHW * float("nan")
            dumps.append({name: value.clone() for name, value in self.state.tokenizer.state_dict().items()})
        return plain(self, x_BCHW)

    monkeypatch.setattr(TokenizerTrainer, "update", poisoned)
    reporter = RecordingReporter()
    with pytest.raises(StageError, match=r"3 steps in a row up to step 10.*step-00000007.*step 7"):
        train(job, reporter)
    (warning,) = reporter.warnings
    assert "step 8 is skipped and nothing moved (gradient_norm and discriminator_gradient_norm: not" in warning

    assert len(dumps) == 3
    for name, value in dumps[0].items():
        assert torch.equal(dumps[2][name], value)


def test_reconstructions_that_fall_apart_and_a_discriminator_that_does_not_train_are_told_apart(
    shards: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without adversarial weight the discriminator stands still and nobody is warned; a lost PSNR is reported once."""
    psnr = iter([14.0, 11.5, 10.9, 10.8, 15.0])
    monkeypatch.setattr(TokenizerTrainer, "validate", lambda self: {"validation/psnr": next(psnr)})
    losses = LOSSES.model_copy(update={"discriminator": ADVERSARY.model_copy(update={"weight": 0.0})})
    reporter = RecordingReporter()
    train(job_at(tmp_path, shards, losses=losses, steps=32), reporter)
    (warning,) = reporter.warnings
    assert "PSNR fell from 14.0 dB at step 8 to 10.9 dB at step 24: lower losses.discriminator.weight" in warning


def test_a_config_that_trains_without_the_discriminator_or_for_it_alone_is_doubted() -> None:
    def found(**adversary: Any) -> list[str]:
        losses = LOSSES.model_copy(update={"discriminator": ADVERSARY.model_copy(update=adversary)})
        return doubts(config_of(losses=losses))

    assert found() == found(weight=1.0) == found(weight=0.0, start=90) == []
    (late,) = found(start=21)
    assert "from step 24 on, and training ends at step 24" in late
    (heavy,) = found(weight=10.0)
    assert "weight=10.0 makes the discriminator's gradient 10 times that of the reconstruction" in heavy


def test_a_tensor_that_does_not_move_is_named() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].bias.requires_grad_(False)
    watch = MovementWatch(network, first_update=3)
    named = []
    for step in range(40):
        named.append(watch.look(step))
        if step >= 3:
            with torch.no_grad():
                network[0].weight += 1
                network[1].weight += 1

    assert named.pop(3 + WATCHED_UPDATES) == ["0.bias"]
    assert not any(named)


def test_codes_that_are_drawn_are_drawn_again_after_a_pause(shards: Artifact, tmp_path: Path) -> None:
    model = MODEL.model_copy(update={"quantizer": GumbelQuantizerConfig(num_codes=24, dim=4, temperature_steps=10)})
    straight = job_at(tmp_path / "straight", shards, model=model, steps=12)
    expected = result_bytes(straight, train(straight))
    paused = job_at(tmp_path / "paused", shards, model=model, steps=12)
    with pytest.raises(Interrupted):
        train(paused, RecordingReporter(stop_after=5))
    assert result_bytes(paused, train(paused, attempt="000001-001")) == expected


def test_a_table_of_used_codes_is_not_trained(shards: Artifact) -> None:
    used = UsedCodesConfig(quantizer=GumbelQuantizerConfig(), num_codes=5)
    with pytest.raises(ConfigError, match=r"kind=used_codes .* train one with kind=gumbel"):
        check_data(config_of(model=MODEL.model_copy(update={"quantizer": used})), shards)


def test_pictures_that_do_not_fit_are_refused_with_both_numbers(shards: Artifact) -> None:
    backbone = LightBackboneConfig(channels=(8, 8, 8, 8, 8), residual_blocks=(0, 0, 0, 0, 0), norm_groups=4)
    with pytest.raises(ConfigError, match=r"16x16, which do not divide into tokens of 32x32 pixels"):
        check_data(config_of(model=MODEL.model_copy(update={"backbone": backbone})), shards)


def test_shards_without_held_out_pictures_are_refused(shards: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    described = {"image_size": 16, "num_train": 15, "num_val": 0}
    monkeypatch.setattr(Artifact, "read_json", lambda self, path: described)
    with pytest.raises(DataError, match="no val pictures to validate on"):
        check_data(config_of(), shards)


def test_more_ranks_than_pictures_in_a_batch_are_refused(shards: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size 7 leaves some of 8 ranks without a picture"):
        train_tokenizer_loop(job_at(tmp_path, shards), rank_of(3, 8), RecordingReporter())


@pytest.mark.slow
def test_in_double_precision_one_slice_two_ranks_and_micro_batches_learn_the_same(
    shards: Artifact, tmp_path: Path
) -> None:
    """The whole loop for 12 steps, codebook restarts included; what differs is the order of sums."""
    keys = {**EVERYTHING, "precision": "fp64", "steps": 12}
    one = job_at(tmp_path / "one", shards, **keys)
    expected = load_file((one.folder / train(one)["result"]).local("model.safetensors"))
    parts = job_at(tmp_path / "parts", shards, IN_PARTS, **keys)
    two = job_at(tmp_path / "two", shards, **keys)
    for job, trained in ((parts, train(parts)), (two, run_gang(2, _train_on_rank, two)[0])):
        for name, value in load_file((job.folder / trained["result"]).local("model.safetensors")).items():
            assert value.dtype == torch.float64
            torch.testing.assert_close(value, expected[name], rtol=1e-8, atol=1e-9)


def test_half_precision_trains_with_losses_and_codebook_in_full(shards: Artifact, tmp_path: Path) -> None:
    job = job_at(tmp_path, shards, precision="bf16", steps=15)
    files = result_bytes(job, train(job))
    losses = [row["train/reconstruction"] for row in rows_of(files) if "train/reconstruction" in row]
    assert len(losses) == 3 and losses[-1] < losses[0]
    (tmp_path / "model.safetensors").write_bytes(files["model.safetensors"])
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}
