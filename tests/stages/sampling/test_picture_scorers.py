"""Scorers: what they compute, against independent formulas; their files; how well they learn what can be learnt."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, DataError
from pipeline.storage import Folder
from stages.data.captions import learn_captions
from stages.models.efficientnet_lite0 import POOLED_FEATURES
from stages.models.scorers.description import ClassifierDescription, TwoTowerDescription, read_description
from stages.models.scorers.heads import TwoTowerHead
from stages.sampling.picture_scorers import Classifier, TwoTower, load_scorer
from stages.training.scorers import CLASSIFIER_PENALTY, fit_classifier, fit_two_tower

WORDS = ("red", "blue", "green", "small", "large", "round", "flat", "old", "new", "tall")
BYTE_PAIRS = learn_captions(WORDS, vocabulary_size=300)


def described(**changes: int) -> TwoTowerDescription:
    return TwoTowerDescription(**{"vocabulary_size": 300, "length": 6, "width": 16, **changes})


def test_infonce_is_the_formula(seed: int = 0) -> None:
    torch.manual_seed(seed)
    head = TwoTowerHead(described()).eval().double()
    features_BD, values_BL = torch.randn(5, POOLED_FEATURES).double(), torch.randint(1, 300, (5, 6))
    same_BB = torch.eye(5, dtype=torch.bool)
    same_BB[1, 3] = same_BB[3, 1] = True
    with torch.no_grad():
        loss = head.loss(features_BD, values_BL, same_BB).item()
        pictures, captions = head.pictures(features_BD).numpy(), head.captions(values_BL).numpy()
    np.testing.assert_allclose(np.linalg.norm(pictures, axis=1), 1)
    scale, nats = float(np.exp(head.log_scale.item())), 0.0
    for one, other in ((pictures, captions), (captions, pictures)):
        for n in range(5):
            rivals = [m for m in range(5) if m == n or {m, n} != {1, 3}]
            logits = np.array([scale * one[n] @ other[m] for m in rivals])
            nats -= logits[rivals.index(n)] - np.log(np.exp(logits).sum())
    assert loss == pytest.approx(nats / 10, rel=1e-9)


def test_padding_and_company_do_not_change_a_captions_direction() -> None:
    torch.manual_seed(0)
    head = TwoTowerHead(described()).eval().double()
    head_of_four = TwoTowerHead(described(length=4)).eval().double()
    state = {name: tensor[:4] if name == "place.weight" else tensor for name, tensor in head.state_dict().items()}
    head_of_four.load_state_dict(state)
    values_BL = torch.tensor([[5, 6, 7, 0, 0, 0], [8, 9, 10, 11, 0, 0], [-1] * 6])
    with torch.inference_mode():
        whole, alone, shorter = (
            head.captions(values_BL),
            head.captions(values_BL[:1]),
            head_of_four.captions(values_BL[:, :4]),
        )
    torch.testing.assert_close(whole[:1], alone)
    torch.testing.assert_close(whole, shorter)
    assert whole.isfinite().all()


def test_the_classifier_ends_where_its_gradient_is_nothing() -> None:
    rng = np.random.default_rng(0)
    labels_N = rng.integers(0, 3, 240)
    means = rng.normal(0, 0.05, (3, POOLED_FEATURES))
    features_ND = (3 + 2 * (means[labels_N] + rng.normal(0, 1, (240, POOLED_FEATURES)))).astype(np.float32)
    description = ClassifierDescription(classes=("a", "b", "c"))
    head = fit_classifier(description, torch.from_numpy(features_ND), torch.from_numpy(labels_N), seed=0)
    seen = (features_ND - features_ND.mean(0)) / (features_ND.std(0, ddof=1) + 1e-6)
    weight, bias = (tensor.detach().double().numpy() for tensor in (head.head.weight, head.head.bias))
    logits = seen @ weight.T + bias
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    missed = (probabilities - np.eye(3)[labels_N]) / 240
    gradient = missed.T @ seen + 2 * CLASSIFIER_PENALTY * weight / 240
    start = (1 / 3 - np.eye(3)[labels_N]).T @ seen / 240
    assert np.linalg.norm(gradient) < 0.02 * np.linalg.norm(start)
    scores = Classifier(description, head).scores(torch.from_numpy(features_ND), ["abc"[label] for label in labels_N])
    np.testing.assert_allclose(scores, probabilities[np.arange(240), labels_N], rtol=1e-4)


def made_up_pairs(count: int, seed: int) -> tuple[torch.Tensor, list[str]]:
    """Features that hold a direction for each of the two words of a caption, and noise."""
    rng, directions = np.random.default_rng(seed), np.random.default_rng(9).normal(0, 1, (10, POOLED_FEATURES))
    chosen = np.array([rng.choice(10, 2, replace=False) for _ in range(count)])
    features_ND = directions[chosen].sum(1) + rng.normal(0, 1, (count, POOLED_FEATURES))
    return torch.from_numpy(features_ND).float(), [f"{WORDS[a]} {WORDS[b]}" for a, b in chosen]


def test_the_towers_learn_which_words_a_picture_shows(tmp_path: Path) -> None:
    features_ND, captions = made_up_pairs(600, 0)
    untrained = TwoTower(described(width=32), TwoTowerHead(described(width=32)), BYTE_PAIRS)
    head = fit_two_tower(untrained.description, features_ND, untrained.values(captions), captions, seed=0)
    scorer = TwoTower(untrained.description, head, BYTE_PAIRS)
    held_out_ND, own = made_up_pairs(60, 1)
    right = scorer.scores(held_out_ND, own)
    wrong = scorer.scores(held_out_ND, [*own[1:], own[0]])
    assert (right > wrong).mean() > 0.85
    assert (np.abs(right) <= 1).all()


def test_scorers_come_back_from_their_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    features_ND, captions = made_up_pairs(4, 0)
    tower = TwoTower(described(), TwoTowerHead(described()), BYTE_PAIRS)
    tower.save(tmp_path / "words")
    assert sorted(path.name for path in (tmp_path / "words").iterdir()) == [
        "captions.json",
        "config.json",
        "model.safetensors",
    ]
    again = load_scorer(tmp_path / "words")
    assert isinstance(again, TwoTower)
    assert np.array_equal(again.scores(features_ND, captions), tower.scores(features_ND, captions))
    (tmp_path / "words" / "captions.json").unlink()
    with pytest.raises(DataError, match=r"no captions\.json"):
        load_scorer(tmp_path / "words")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "regressor"}, "describes no scorer: content: .*'regressor'"),
        ({"width": 0}, "describes no scorer: two_tower.width: Input should be greater than or equal to 1"),
        ({"secret": 1}, r"two_tower\.secret: Extra inputs are not permitted"),
    ],
)
def test_a_damaged_description_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    TwoTower(described(), TwoTowerHead(described()), BYTE_PAIRS).save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ConfigError, match=message):
        read_description(Folder.at(tmp_path))


def test_weights_of_another_scorer_are_refused(tmp_path: Path) -> None:
    TwoTower(described(), TwoTowerHead(described()), BYTE_PAIRS).save(tmp_path)
    (tmp_path / "config.json").write_text(described(width=32).model_dump_json())
    with pytest.raises(DataError, match=r"model\.safetensors does not fit .*config\.json"):
        load_scorer(tmp_path)
