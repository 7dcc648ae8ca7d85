"""Inception's features are torch-fidelity's own, its weights are plain tensors or refused, and are found or missed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from pipeline.errors import ConfigError, DataError
from stages.evaluate import EvaluateConfig, evaluate_inputs
from stages.models.inception import Inception, class_weights
from stages.models.inception_weights import NAMES, find_inception, inception_inputs
from tests.random_inception import save_random_inception


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_inception(tmp_path_factory.mktemp("inception") / "random.pth")


def test_features_and_logits_are_those_of_torch_fidelity(weights: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
    names = ["2048", "logits_unbiased"]
    theirs = FeatureExtractorInceptionV3("theirs", names, feature_extractor_weights_path=str(weights))
    features, logits = theirs(torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous())
    network = Inception(weights)
    ours = network.features(pictures)
    assert np.array_equal(ours, features.numpy()) and ours.std() > 0.01
    assert np.allclose(ours @ class_weights(weights).T, logits.numpy(), rtol=1e-4, atol=1e-4)
    grey = pictures[:1, :, :, :1]
    assert np.array_equal(network.features(grey), network.features(grey.repeat(3, axis=3)))


class Opens:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("executed",)


def test_a_file_that_would_execute_something_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"fc.weight": Opens()}))
    torch.save({"fc.weight": Opens()}, tmp_path / "worse.pth")
    for name in ("bad.pth", "worse.pth"):
        with pytest.raises(DataError, match=name):
            Inception(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "other.pth")
    with pytest.raises(DataError, match=r"\(1000, 2048\), Inception's \(1008, 2048\)"):
        class_weights(tmp_path / "other.pth")
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, tmp_path / "half.pth")
    with pytest.raises(DataError, match="other tensors"):
        Inception(tmp_path / "half.pth")


@pytest.mark.parametrize("name", NAMES)
def test_auto_finds_what_others_have_fetched(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert find_inception("auto") is None and inception_inputs("auto") == {}
    place = tmp_path / "hub" / "checkpoints" / name
    place.parent.mkdir(parents=True)
    place.write_bytes(b"weights")
    with mock.patch("torch.hub.load_state_dict_from_url", side_effect=AssertionError("no downloads")):
        assert find_inception("auto") == place
    assert find_inception("none") is None
    before = inception_inputs("auto")["inception"].digest
    place.write_bytes(b"weighty")
    assert inception_inputs("auto")["inception"].digest != before


def test_missing_files_are_errors_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"evaluate\.inception: there is no file .*nowhere\.pth"):
        evaluate_inputs(EvaluateConfig(inception=str(tmp_path / "nowhere.pth")))
    with pytest.raises(ConfigError, match=r"evaluate\.reference.*evaluate\.inception=PATH"):
        evaluate_inputs(EvaluateConfig(reference=str(tmp_path / "some.npz")))
    with pytest.raises(ConfigError, match="behind a URL"):
        evaluate_inputs(EvaluateConfig(inception="s3://bucket/weights.pth"))
