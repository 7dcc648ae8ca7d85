"""Standard figures have the values of torch-fidelity, names that tell them apart, and digests of what they rest on."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from stages.metrics.by_class import class_figures
from stages.metrics.class_names import ClassNames
from stages.metrics.frechet_distance import moments_of
from stages.metrics.networks import Look
from stages.metrics.standard import Imported, Network, Seen, Standard

SIZE = 24
COUNTS = {"train": 90, "val": 60, "samples": 70, "reconstructions": 60}


def seen() -> dict[str, Seen]:
    rng = np.random.default_rng(0)
    sets = {name: np.abs(rng.normal(0.1, 1, (count, SIZE))).astype(np.float32) for name, count in COUNTS.items()}
    sets["reconstructions"] = sets["val"] + np.float32(0.1) * sets["reconstructions"]
    return {name: Seen(features) for name, features in sets.items()}


def standard(tag: str = "", distance: str = "fid", splits: tuple[str, ...] = ("train", "val")) -> Standard:
    sets = seen()
    weights = np.random.default_rng(1).normal(0, 1, (5, SIZE)).astype(np.float32)
    network = Network("a network", "d" * 64, distance, tag, weights)
    return Standard(network, sets, {split: moments_of(sets[split].pictures) for split in splits}, seed=0)


def test_every_figure_has_the_value_of_torch_fidelity() -> None:
    made = standard()
    figures, sets = made.figures(), {name: torch.from_numpy(it.features_ND).double() for name, it in made.sets.items()}
    statistics = {name: fid_features_to_statistics(features) for name, features in sets.items()}

    def fid(name: str, against: str) -> float:
        pair = (statistics[name], statistics[against])
        return float(fid_statistics_to_metric(*pair, verbose=False)["frechet_inception_distance"])

    assert figures["gfid_train"]["value"] == pytest.approx(fid("samples", "train"), rel=1e-6)
    assert figures["gfid_val"]["value"] == pytest.approx(fid("samples", "val"), rel=1e-6)
    assert figures["rfid_val"]["value"] == pytest.approx(fid("reconstructions", "val"), rel=1e-6)
    theirs = kid_features_to_metric(sets["samples"], sets["train"], kid_subsets=100, kid_subset_size=70, verbose=False)
    assert figures["gkid_train"]["subset_mean"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert figures["gkid_train"]["subset_std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-9)
    for split in ("train", "val"):
        theirs = prc_features_to_metric(sets["samples"], sets[split], verbose=False)
        assert figures[f"gprecision_{split}"]["value"] == pytest.approx(theirs["precision"], abs=1e-6)
        assert figures[f"grecall_{split}"]["value"] == pytest.approx(theirs["recall"], abs=1e-6)
    logits = sets["samples"] @ torch.from_numpy(made.network.class_weights_KD).double().T
    theirs = isc_features_to_metric(logits)["inception_score_mean"]
    assert figures["is_samples"]["value"] == pytest.approx(theirs, rel=1e-5)


def test_each_figure_says_which_network_and_which_reference() -> None:
    made = standard()
    figures = made.figures()
    assert all(figure["features"] == {"name": "a network", "digest": "d" * 64} for figure in figures.values())
    train = {"what": "training pictures", "pictures": 90}
    assert figures["gfid_train"]["reference"] == {**train, "digest": made.statistics["train"].digest}
    features = hashlib.sha256(made.sets["train"].features_ND.tobytes()).hexdigest()
    assert figures["gkid_train"]["reference"] == {**train, "digest": features}
    assert figures["rfid_val"]["reference"]["digest"] == made.statistics["val"].digest
    assert (figures["gfid_train"]["samples"], figures["gfid_train"]["against"]) == (70, 90)
    assert (figures["gfid_train"]["title"], figures["is_val"]["title"]) == ("gFID (train)", "Inception score (val)")
    assert all(figure["interval"][0] <= figure["value"] <= figure["interval"][1] for figure in figures.values())


def test_names_of_other_networks_never_say_fid() -> None:
    others = {**standard("_inception", "fd").figures(), **standard("_lite0", "fd", ("train",)).figures()}
    assert not any("fid" in name or "FID" in figure["what"] + figure["title"] for name, figure in others.items())
    assert {"gfd_inception_train", "rfd_inception_val", "gfd_lite0_train", "gkid_lite0_train"} <= set(others)
    assert not any(name.endswith("_val") and "lite0" in name for name in others if not name.startswith("is"))


def test_somebody_elses_statistics_have_their_own_name_and_digest() -> None:
    made = standard()
    imported = Imported(made.statistics["train"], "imagenet.npz", "e" * 64)
    figure = made.figures(imported)["gfid_reference"]
    assert figure["value"] == made.figures()["gfid_train"]["value"]
    assert figure["reference"] == {"what": "imagenet.npz", "pictures": None, "digest": "e" * 64}
    assert "imagenet.npz" in figure["computed_on"] and "against" not in figure


class Labelled:
    """As much of what was measured as classes need."""

    sample_labels_N = np.repeat([0, 1, 2], [52, 12, 6])
    held_out_labels_N = np.repeat([0, 1, 2], [50, 6, 4])


def test_only_classes_with_pictures_enough_have_distances() -> None:
    made = standard()
    look = Look(made.network, made.sets, "inception")
    found = class_figures(["many", "few", "fewer"], Labelled(), [look])  # type: ignore[arg-type]
    assert set(found) == {"many"} and set(found["many"]) == {"gkid_val", "gfid_val"}
    assert (found["many"]["gkid_val"]["samples"], found["many"]["gkid_val"]["against"]) == (52, 50)
    assert "of many" in found["many"]["gfid_val"]["computed_on"]


def test_classes_are_told_apart_by_name() -> None:
    classes = ClassNames.of(("a", "b", "c"), ("c", "x", "a"))
    assert classes.labels(np.array([0, 1, 2, -1])).tolist() == [2, -1, 0, -1]
    assert classes.labels_for_model(np.array([0, 1, 2, -1])).tolist() == [2, -1, 0, -1]
    assert (classes.unknown_to_model, classes.gone, classes.same) == (["b"], ["x"], False)
    assert ClassNames.of((), ()).labels(np.array([-1])).tolist() == [-1]
