"""The prior stage: from finished tokens to an artifact that others can load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.artifacts import Artifact, Source
from pipeline.config import ClusterConfig, validate
from pipeline.errors import ConfigError, DataError
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from stages.models.priors.configs import GPTConfig, PriorDescription
from stages.models.priors.load import load_prior
from stages.models.vocabulary import TokenCorpus
from stages.prior import PriorConfig, train_prior
from stages.training.states import load_state
from stages.training.token_data import read_split
from tests.stages.training.corpora import TOKENIZER, make_corpus

CONFIG = PriorConfig(
    model=GPTConfig(num_layers=1, num_heads=2, width=16),
    steps=12,
    batch_size=8,
    learning_rate=1e-3,
    warmup_steps=2,
    schedule_steps=10_000,
    validate_every=5,
)


def run(tokens: Artifact, workdir: Path, config: PriorConfig = CONFIG, **keys: Any) -> Artifact:
    stage = Stage("prior", train_prior, config, {"tokens": Source("tokens", tuple)})
    runtime = LocalRuntime(cluster=ClusterConfig(checkpoint_every=4, threads=1))
    return run_stage(stage, {"tokens": tokens}, str(workdir), runtime, **keys)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def prior(tokens: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return run(tokens, tmp_path_factory.mktemp("prior"))


def test_the_artifact_holds_the_documented_files(prior: Artifact) -> None:
    assert [entry.path for entry in prior.files] == [
        "config.json",
        "history.jsonl",
        "likelihood.json",
        "model.safetensors",
        "training.json",
        "training.safetensors",
    ]
    assert prior.damaged() == []
    description = PriorDescription.model_validate(prior.read_json("config.json"))
    assert description.tokenizer == TOKENIZER
    assert description.grid == (3, 4)
    assert description.model == CONFIG.model
    assert prior.notes["tokens_per_second"] > 0


def test_the_loaded_model_has_the_reported_likelihood(prior: Artifact, tokens: Artifact) -> None:
    model = load_prior(prior.local("model.safetensors").parent)
    val = read_split(tokens, TokenCorpus.model_validate(tokens.read_json("tokens.json")), "val")
    condition_NC, tokens_NT = (
        torch.from_numpy(val.condition_NC.astype(int)),
        torch.from_numpy(val.tokens_NT.astype(int)),
    )

    with torch.no_grad():
        logits_NTV = model(condition_NC, tokens_NT).double()
    log_likelihood_NT = logits_NTV.log_softmax(-1).gather(-1, tokens_NT[..., None])[..., 0]

    bits = -log_likelihood_NT.mean().item() / torch.log(torch.tensor(2.0, dtype=torch.float64)).item()
    assert prior.metrics["bits_per_token"] == pytest.approx(bits, rel=1e-6)
    assert prior.metrics["bits_per_picture"] == pytest.approx(12 * bits, rel=1e-6)


def test_the_history_has_train_and_validation_rows(prior: Artifact) -> None:
    rows = [json.loads(line) for line in prior.local("history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "validation/bits_per_token" in row] == [5, 10, 12]
    (train,) = [row for row in rows if "train/bits_per_token" in row]
    assert train.keys() == {"step", "train/bits_per_token", "train/learning_rate", "train/gradient_norm"}
    assert train["step"] == 10
    assert 1.5 < train["train/bits_per_token"] < 4
    assert train["train/learning_rate"] == pytest.approx(1e-3, rel=1e-3)


def test_the_full_state_lies_beside_the_weights(prior: Artifact) -> None:
    state = load_state(prior.local("training.json").parent, "training")
    assert state["step"] == 12
    assert [step for step, _ in state["validations"]] == [5, 10]
    moments = state["optimizer"]["state"]
    assert all(entry["step"].item() == 12 for entry in moments.values())
    assert set(moments) == set(range(len(state["model"])))


def test_two_runs_make_the_same_bytes(prior: Artifact, tokens: Artifact, tmp_path: Path) -> None:
    assert run(tokens, tmp_path).digest == prior.digest


def test_raising_steps_goes_on_and_forcing_starts_over(tokens: Artifact, tmp_path: Path) -> None:
    run(tokens, tmp_path, CONFIG.model_copy(update={"steps": 6}))
    folder = next((tmp_path / "checkpoints" / "prior").iterdir())
    kept = {path.name for path in folder.glob("step-*")}

    raised = run(tokens, tmp_path)

    assert list((tmp_path / "checkpoints" / "prior").iterdir()) == [folder]
    forced = run(tokens, tmp_path, fresh=True)
    assert forced.digest == raised.digest
    assert kept.isdisjoint(path.name for path in folder.glob("step-*"))
    assert not list(folder.glob("result-*"))


def test_no_training_tokens_is_an_error_of_the_data(tmp_path: Path) -> None:
    empty = make_corpus(tmp_path, train_tables=())
    with pytest.raises(DataError, match="there are no training tokens"):
        run(empty, tmp_path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"learning_rate": 1e-5}, "min_learning_rate 0.0001 is above learning_rate 1e-05"),
        ({"schedule_steps": 100, "warmup_steps": 100}, "schedule_steps 100 ends before warmup_steps 100"),
        ({"precission": "bf16"}, "unknown key; did you mean precision"),
        ({"steps": 0}, "steps 0 trains nothing: raise it, or set from_checkpoint"),
        ({"steps": -1}, "steps: Input should be greater than or equal to 0"),
    ],
)
def test_contradictions_in_the_config_name_the_remedy(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(PriorConfig, keys, "test")


def test_importing_the_stage_loads_nothing_heavy() -> None:
    code = (
        "import sys, stages.prior; "
        "print([name for name in ('torch', 'numpy', 'pyarrow', 'lightning_fabric', 'ray') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
