"""The prior's training: it learns, and killing, pausing, splitting it over ranks does not change what it learns."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.artifacts import Artifact
from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError, DataError, Interrupted, StageError
from pipeline.runtime import Rank
from pipeline.storage import Folder
from stages.models.priors.configs import GPTConfig, PixelCNNConfig, PriorDescription, PriorModelConfig
from stages.models.priors.load import build_prior
from stages.models.vocabulary import TokenCorpus
from stages.training.checkpoints import Checkpoints, reseed
from stages.training.fabric import open_fabric
from stages.training.prior import PriorJob, PriorTrainer, train_prior_loop
from stages.training.prior_config import PriorConfig
from stages.training.prior_state import out_of_patience
from stages.training.session import Session
from stages.training.token_data import read_split
from tests.stages.training.corpora import make_corpus
from tests.stages.training.gangs import RecordingReporter, processes, rank_of, run_gang

MODEL = GPTConfig(num_layers=2, num_heads=2, width=32, dropout=0.1, condition_dropout=0.2)
OTHERS = {
    "modern gpt": MODEL.model_copy(update={"form": "modern"}),
    "pixelcnn": PixelCNNConfig(num_blocks=4, width=24, head_width=24, dropout=0.1, condition_dropout=0.2),
}


def job_at(place: Path, tokens: Artifact, cluster: ClusterConfig | None = None, **settings: Any) -> PriorJob:
    keys = {"model": MODEL, "steps": 36, "batch_size": 10, "warmup_steps": 4, "schedule_steps": 40, "validate_every": 8}
    return PriorJob(
        config=PriorConfig(**{**keys, "record_every": 5, "learning_rate": 3e-3, **settings}),
        corpus=TokenCorpus.model_validate(tokens.read_json("tokens.json")),
        tokens=tokens,
        folder=Folder.at(place),
        cluster=cluster or ClusterConfig(checkpoint_every=7),
    )


def train(job: PriorJob, reporter: RecordingReporter | None = None, attempt: str = "000001-000") -> dict[str, Any]:
    return train_prior_loop(job, rank_of(attempt=attempt), reporter or RecordingReporter())


def result_bytes(job: PriorJob, trained: dict[str, Any]) -> dict[str, bytes]:
    folder = job.folder / trained["result"]
    return {name: folder.read(name) for name in folder.names()}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def uninterrupted(tokens: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    job = job_at(tmp_path_factory.mktemp("uninterrupted"), tokens)
    return result_bytes(job, train(job))


@pytest.mark.slow
def test_it_approaches_the_entropy_of_the_corpus(tmp_path: Path) -> None:
    tokens = make_corpus(tmp_path, train_tables=(500, 700))
    job = job_at(tmp_path / "prior", tokens, steps=250, schedule_steps=250, batch_size=32, validate_every=50)

    trained = train(job)

    # 3 bits for the first token, 1 for each of the 11 others: 1.167 bits a token; guessing costs 3.
    assert 1.1 < trained["metrics"]["bits_per_token"] < 1.3
    likelihood = json.loads((job.folder / trained["result"]).read("likelihood.json"))
    positions = np.asarray(likelihood["bits_per_position"])
    assert positions.shape == (3, 4)
    assert 2.8 < positions[0, 0] < 3.4
    assert np.all(positions.flatten()[1:] < 1.5)
    assert likelihood["num_pictures"] == 40
    assert likelihood["bits_per_picture"] == pytest.approx(12 * trained["metrics"]["bits_per_token"])


@pytest.mark.parametrize("kind", list(OTHERS))
def test_other_priors_learn_and_resume_bit_for_bit(tokens: Artifact, tmp_path: Path, kind: str) -> None:
    keys = {"model": OTHERS[kind], "ema_decay": 0.8, "schedule_steps": 40, "learning_rate": 1e-2}
    straight, paused = (job_at(tmp_path / name, tokens, **keys) for name in ("straight", "paused"))
    trained = train(straight)
    with pytest.raises(Interrupted):
        train(paused, RecordingReporter(stop_after=17))

    assert result_bytes(paused, train(paused, attempt="000002-000")) == result_bytes(straight, trained)
    assert trained["metrics"]["bits_per_token"] < 2.2  # it has seen 120 pictures; guessing costs 3


def test_the_running_mean_of_the_weights_is_the_result(tmp_path: Path) -> None:
    """Of the weights after each update; at first it remembers less than `ema_decay`: (1 + n) / (10 + n)."""
    tokens = make_corpus(tmp_path, val_tables=())

    def weights(steps: int, stem: str = "model", **keys: Any) -> dict[str, torch.Tensor]:
        job = job_at(tmp_path / f"{steps}-{keys}", tokens, steps=steps, **keys)
        return load_file(job.folder.local(f"{train(job)['result']}/{stem}.safetensors"))

    reseed(0, 0, 0)
    job = job_at(tmp_path, tokens)
    expected = build_prior(PriorDescription.of(MODEL, job.corpus.space)).state_dict()
    for kept, steps in ((1 / 10, 1), (2 / 11, 2), (0.2, 3)):
        after = weights(steps)
        expected = {name: kept * value + (1 - kept) * after[name] for name, value in expected.items()}

    averaged, training = (weights(3, stem, ema_decay=0.2) for stem in ("model", "training"))
    for name, value in expected.items():
        torch.testing.assert_close(averaged[name], value, rtol=1e-5, atol=1e-7)
        assert torch.equal(training[f"average/network/{name}"], averaged[name])
        assert torch.equal(training[f"model/{name}"], after[name])


def test_the_best_running_mean_is_kept(tokens: Artifact, tmp_path: Path) -> None:
    overfitting = {"learning_rate": 2e-2, "min_learning_rate": 2e-2, "schedule_steps": None, "ema_decay": 0.5}
    job = job_at(tmp_path, tokens, steps=80, validate_every=20, **overfitting)
    trained = train(job)
    folder = job.folder / trained["result"]
    assert trained["metrics"]["best_step"] < 80
    best, training = (load_file(folder.local(f"{stem}.safetensors")) for stem in ("model", "training"))
    for name, value in best.items():
        assert torch.equal(training[f"best_weights/{name}"], value)
        assert not torch.equal(training[f"average/network/{name}"], value)


def test_paused_and_resumed_equals_uninterrupted_bit_for_bit(
    tokens: Artifact, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    job = job_at(tmp_path, tokens)
    reporter = RecordingReporter(stop_after=17)
    with pytest.raises(Interrupted):
        train(job, reporter)
    again = RecordingReporter()

    trained = train(job, again, "000002-000")

    assert result_bytes(job, trained) == uninterrupted
    assert again.steps_seen[0] == 20
    rows = [json.loads(line) for line in uninterrupted["history.jsonl"].splitlines()]
    assert {json.dumps(row, sort_keys=True) for row in again.rows} == {json.dumps(row, sort_keys=True) for row in rows}
    assert reporter.rows == rows[: len(reporter.rows)]
    assert max(row["step"] for row in reporter.rows) <= 17


@pytest.mark.slow
def test_killed_at_random_moments_equals_uninterrupted_bit_for_bit(
    tokens: Artifact, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    job = job_at(tmp_path, tokens)
    context, kills = processes(), 0
    moments = random.Random(20)
    for attempt in range(1, 50):
        answer = context.SimpleQueue()
        child = context.Process(target=_train_in_child, args=(answer, job, f"{attempt:06d}-000", str(tmp_path)))
        child.start()
        if kills < 3:
            _wait_until_it_trains(tmp_path, child, attempt)
            time.sleep(moments.uniform(0.0, 0.25))
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        if child.exitcode == 0:
            break
        kills += 1

    assert kills == 3
    assert result_bytes(job, answer.get()) == uninterrupted


def _train_in_child(answer: Any, job: PriorJob, attempt: str, place: str) -> None:
    answer.put(train_prior_loop(job, rank_of(attempt=attempt), _Announcer(Path(place) / f"started-{int(attempt[:6])}")))


class _Announcer(RecordingReporter):
    """Leaves a mark once the first step is done, and trains slowly enough to be killed in the middle."""

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self.mark = mark

    def stopping(self) -> bool:
        self.mark.touch()
        time.sleep(0.01)
        return False


def _wait_until_it_trains(place: Path, child: Any, attempt: int) -> None:
    deadline = time.monotonic() + 60
    while not (place / f"started-{attempt}").exists():
        assert child.is_alive()
        assert time.monotonic() < deadline, "the child does not train"
        time.sleep(0.005)


@pytest.mark.slow
def test_two_ranks_pause_and_resume_bit_for_bit(tokens: Artifact, tmp_path: Path) -> None:
    straight, paused = job_at(tmp_path / "straight", tokens), job_at(tmp_path / "paused", tokens)
    whole = run_gang(2, _train_on_rank, straight, None)[0]
    assert run_gang(2, _train_on_rank, paused, 17) == ["interrupted", "interrupted"]
    resumed = run_gang(2, _train_on_rank, paused, None, attempt="000002-000")[0]

    assert result_bytes(paused, resumed) == result_bytes(straight, whole)


def _train_on_rank(rank: Rank, job: PriorJob, stop_after: int | None) -> Any:
    try:
        return train_prior_loop(job, rank, RecordingReporter(stop_after=stop_after))
    except Interrupted:
        return "interrupted"


@pytest.fixture(scope="module")
def whole_batch_gradients(tokens: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return _gradients_on_rank(rank_of(), noisy_job(tmp_path_factory.mktemp("whole"), tokens))


def noisy_job(
    place: Path, tokens: Artifact, micro_batch: int | None = None, model: PriorModelConfig = MODEL
) -> PriorJob:
    """Everything that draws at random is on; 7 pictures do not divide evenly."""
    model = model.model_copy(update={"dropout": 0.3, "condition_dropout": 0.5, "pkeep": 0.8})
    cluster = ClusterConfig(micro_batch=micro_batch)
    return job_at(place, tokens, cluster, model=model, batch_size=7, clip_gradient=None)


def _gradients_on_rank(rank: Rank, job: PriorJob) -> dict[str, np.ndarray]:
    """Gradients of one update in float64, early in the training and in the middle of an epoch."""
    with open_fabric(rank, precision="64-true") as fabric:
        train, val = (read_split(job.tokens, job.corpus, split) for split in ("train", "val"))
        checkpoints = Checkpoints(job.folder, rank.attempt)
        session = Session(fabric, rank, RecordingReporter(), checkpoints, steps=1, checkpoint_every=1)
        trainer = PriorTrainer(job, fabric, rank, session, train, val)
        trainer.state.step = 5
        trainer.fit_memory()
        trainer.step.take(trainer.batch(rank.rank))
        return {name: value.grad.numpy().copy() for name, value in trainer.state.model.named_parameters()}


def _assert_same_gradients(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.dtype == np.float64
        largest = np.abs(gradient).max()
        assert largest > 0, name
        np.testing.assert_allclose(found[name], gradient, rtol=1e-9, atol=1e-12 * largest, err_msg=name)


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_micro_batches_have_the_gradient_of_the_whole_batch(
    tokens: Artifact, whole_batch_gradients: dict[str, np.ndarray], tmp_path: Path, micro_batch: int
) -> None:
    found = _gradients_on_rank(rank_of(), noisy_job(tmp_path, tokens, micro_batch))
    _assert_same_gradients(found, whole_batch_gradients)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "micro_batch"), [(2, None), (2, 2), (3, None)])
def test_ranks_with_uneven_slices_have_the_gradient_of_one(
    tokens: Artifact, whole_batch_gradients: dict[str, np.ndarray], tmp_path: Path, world: int, micro_batch: int | None
) -> None:
    """Slices of 3 and 4, of 2, 2 and 3; each drops what its pictures' places in the order say."""
    for found in run_gang(world, _gradients_on_rank, noisy_job(tmp_path, tokens, micro_batch)):
        _assert_same_gradients(found, whole_batch_gradients)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(OTHERS))
def test_other_priors_have_the_same_gradient_on_two_ranks_in_micro_batches(
    tokens: Artifact, tmp_path: Path, kind: str
) -> None:
    whole = _gradients_on_rank(rank_of(), noisy_job(tmp_path / "whole", tokens, model=OTHERS[kind]))
    split = noisy_job(tmp_path / "split", tokens, 2, OTHERS[kind])
    for found in run_gang(2, _gradients_on_rank, split):
        _assert_same_gradients(found, whole)


def test_a_gradient_that_ignores_the_noise_would_be_noticed(
    tokens: Artifact, whole_batch_gradients: dict[str, np.ndarray], tmp_path: Path
) -> None:
    job = noisy_job(tmp_path, tokens)
    for switched_off in ({"dropout": 0.0}, {"condition_dropout": 0.0}, {"pkeep": 1.0}):
        model = job.config.model.model_copy(update=switched_off)
        quieter = replace(job, config=job.config.model_copy(update={"model": model}))
        gradient = _gradients_on_rank(rank_of(), quieter)["head.weight"]
        assert not np.allclose(gradient, whole_batch_gradients["head.weight"], rtol=0.01)


@pytest.mark.slow
def test_one_rank_two_ranks_and_micro_batches_learn_the_same(tokens: Artifact, tmp_path: Path) -> None:
    """16 updates in float32 on slices of 9, of 4 and 5, of 2, dropout included."""
    keys = {"batch_size": 9, "steps": 16}
    one = job_at(tmp_path / "one", tokens, **keys)
    micro = job_at(tmp_path / "micro", tokens, ClusterConfig(micro_batch=2), **keys)
    two = job_at(tmp_path / "two", tokens, ClusterConfig(micro_batch=3), **keys)
    weights = [
        load_file(job.folder.local(f"{trained['result']}/model.safetensors"))
        for job, trained in ((one, train(one)), (micro, train(micro)), (two, run_gang(2, _train_on_rank, two, None)[0]))
    ]

    for other in weights[1:]:
        for name, value in weights[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=2e-4)


def test_raising_steps_goes_on_to_what_training_straight_gives(
    tokens: Artifact, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    train(job_at(tmp_path, tokens, steps=19))  # not where it validates: its last look must leave no trace
    reporter = RecordingReporter()
    longer = job_at(tmp_path, tokens)

    assert result_bytes(longer, train(longer, reporter)) == uninterrupted
    assert reporter.steps_seen[0] == 20


def test_lowering_steps_starts_over_and_says_so(tokens: Artifact, tmp_path: Path) -> None:
    train(job_at(tmp_path / "lowered", tokens))
    reporter = RecordingReporter()
    lowered, fresh = job_at(tmp_path / "lowered", tokens, steps=12), job_at(tmp_path / "fresh", tokens, steps=12)

    trained = train(lowered, reporter)

    assert result_bytes(lowered, trained) == result_bytes(fresh, train(fresh))
    assert "step 36 lies beyond" in reporter.warnings[0]
    assert "from the beginning" in reporter.warnings[0]


def test_patience_ends_training_and_the_best_weights_are_kept(tokens: Artifact, tmp_path: Path) -> None:
    overfitting = {"learning_rate": 2e-2, "min_learning_rate": 2e-2, "schedule_steps": None, "validate_every": 10}
    patient = job_at(tmp_path, tokens, steps=400, patience=2, **overfitting)

    trained = train(patient)

    history = (patient.folder / trained["result"]).read("history.jsonl").splitlines()
    bits = {
        row["step"]: row["validation/bits_per_token"]
        for row in map(json.loads, history)
        if "validation/bits_per_token" in row
    }
    best = min(bits, key=lambda step: bits[step])
    assert trained["metrics"]["steps"] == best + 20 < 400
    assert trained["metrics"]["best_step"] == best
    assert trained["metrics"]["bits_per_token"] == pytest.approx(bits[best], rel=1e-9)

    # More patience goes on from there; less starts over, for it would have ended before the checkpoint.
    more, less = RecordingReporter(), RecordingReporter()
    patience_3 = train(job_at(tmp_path, tokens, steps=best + 30, patience=3, **overfitting), more)
    assert patience_3["metrics"]["steps"] == best + 30
    assert more.steps_seen[0] > best
    train(job_at(tmp_path, tokens, steps=best + 30, patience=1, **overfitting), less)
    assert less.steps_seen[0] == 5


def test_patience_counts_validations_since_the_best() -> None:
    bits = [3.0, 2.0, 2.5, 2.1, 1.9, 1.9, 2.0]
    validations = [(10 * place, value) for place, value in enumerate(bits)]
    ended = {
        patience: [count for count in range(len(bits) + 1) if out_of_patience(validations[:count], patience)]
        for patience in (1, 2, 3, None)
    }
    assert ended == {1: [3, 4, 6, 7], 2: [4, 7], 3: [], None: []}


def test_tokens_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    foreign = make_corpus(tmp_path, table_tokenizer="77c1" * 16)
    message = "made by tokenizer 77c177c177c1, this prior expects 3fa93fa93fa9: run --stages encode"
    with pytest.raises(DataError, match=message):
        train(job_at(tmp_path / "prior", foreign))


@pytest.mark.parametrize(
    ("promised", "message"),
    [
        ({"num_train": 121}, "promises 121 train rows, the tables hold 120"),
        ({"grid": [4, 4]}, "has 12 tokens a picture, tokens.json says 4x4"),
        ({"codebook_size": 7}, "holds token 7, tokens.json knows 7 of them"),
        ({"classes": ["falling"]}, "holds label 1, tokens.json knows 1 of them"),
        (
            {"condition": [{"kind": "edges", "length": 2, "size": 1}]},
            "has 1 condition tokens a picture, tokens.json says 2",
        ),
        (
            {"condition": [{"kind": "caption", "length": 1, "size": 0}]},
            "holds caption token 9, tokens.json knows 8 to 8",
        ),
    ],
)
def test_tables_that_contradict_tokens_json_are_refused(tmp_path: Path, promised: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        train(job_at(tmp_path / "prior", make_corpus(tmp_path, promised=promised)))


def test_without_validation_tokens_the_last_weights_are_kept(tmp_path: Path) -> None:
    tokens = make_corpus(tmp_path, val_tables=())
    reporter = RecordingReporter()
    job = job_at(tmp_path / "prior", tokens, steps=8)

    trained = train(job, reporter)

    assert "no validation tokens" in reporter.warnings[0]
    assert "bits_per_token" not in trained["metrics"]
    folder = job.folder / trained["result"]
    weights, training = (load_file(folder.local(f"{stem}.safetensors")) for stem in ("model", "training"))
    assert all(torch.equal(value, training[f"model/{name}"]) for name, value in weights.items())


def test_a_loss_that_is_not_finite_ends_training_before_it_is_saved(tokens: Artifact, tmp_path: Path) -> None:
    job = job_at(tmp_path, tokens, learning_rate=1e30, clip_gradient=None)
    with pytest.raises(StageError, match=r"not finite at step 5; the last good checkpoint is none yet; lower prior"):
        train(job)
    assert not list(tmp_path.glob("step-*"))


def test_a_batch_smaller_than_the_gang_is_refused(tokens: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size=3 is smaller than the gang of 4 ranks"):
        train_prior_loop(job_at(tmp_path, tokens, batch_size=3), rank_of(0, 4), RecordingReporter())


def test_the_null_class_is_learnt_only_where_conditions_are_dropped(tokens: Artifact, tmp_path: Path) -> None:
    def null_embedding(share: float, steps: int) -> torch.Tensor:
        model = MODEL.model_copy(update={"condition_dropout": share})
        job = job_at(tmp_path / f"{share}-{steps}", tokens, model=model, steps=steps, validate_every=2)
        weights = load_file(job.folder.local(f"{train(job)['result']}/model.safetensors"))
        return weights["token_embedding.weight"][job.corpus.vocabulary.null_tokens[0]]

    assert torch.equal(null_embedding(0.0, 2), null_embedding(0.0, 4))
    assert not torch.equal(null_embedding(0.5, 2), null_embedding(0.5, 4))


def test_a_sweep_over_ranks_sees_every_row_once(tokens: Artifact) -> None:
    corpus = TokenCorpus.model_validate(tokens.read_json("tokens.json"))
    data = read_split(tokens, corpus, "val")

    def rows() -> Iterator[int]:
        for rank in range(3):
            for batch in data.sweep(5, rank, 3):
                assert torch.equal(
                    batch.tokens_BT, torch.from_numpy(data.tokens_NT[batch.positions_B.numpy()].astype(int))
                )
                yield from batch.positions_B.tolist()

    assert sorted(rows()) == list(range(40))
