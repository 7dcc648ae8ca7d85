"""Reference statistics are computed once, read from others' files, and nothing else is taken for them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.output import Output
from pipeline.storage import Folder
from pipeline.units import UnitStore
from stages.metrics.frechet_distance import frechet_distance
from stages.metrics.moments import Moments
from stages.metrics.reference import STATISTICS, kept_moments, read_reference


def output_in(folder: Path, warnings: list[str]) -> Output:
    workdir = Folder.at(folder)
    store = UnitStore(workdir / "units", "evaluate", 1)
    return Output(workdir / "evaluate", store, workdir, "evaluate", "f" * 64, {}, warnings.append)


def features(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(seed, 1, (50, 6))


def test_statistics_of_the_same_data_and_network_are_computed_once(tmp_path: Path) -> None:
    computed = []

    def kept(of: dict[str, str]) -> Moments:
        def compute() -> Moments:
            computed.append(of)
            return Moments.nothing(6).add(features(1))

        return kept_moments(output_in(tmp_path, []), of, compute)

    first, again, other = kept({"data": "a"}), kept({"data": "a"}), kept({"data": "b"})
    assert computed == [{"data": "a"}, {"data": "b"}]
    assert first.digest == again.digest == other.digest
    assert np.array_equal(first.covariance_DD, again.covariance_DD)


def test_damaged_statistics_are_computed_again_with_a_warning(tmp_path: Path) -> None:
    warnings: list[str] = []
    for _ in range(2):
        kept_moments(output_in(tmp_path, warnings), {"data": "a"}, lambda: Moments.nothing(6).add(features(1)))
    (kept,) = tmp_path.rglob(STATISTICS)
    kept.write_bytes(b"cut")
    found = kept_moments(output_in(tmp_path, warnings), {"data": "a"}, lambda: Moments.nothing(6).add(features(1)))
    assert found.digest == Moments.nothing(6).add(features(1)).digest
    assert len(warnings) == 1 and "computed again" in warnings[0]


def test_statistics_as_others_keep_them_give_the_same_distance(tmp_path: Path) -> None:
    x, y = features(2), features(3)
    np.savez(tmp_path / "stats.npz", mu=y.mean(axis=0), sigma=np.cov(y, rowvar=False), mu_s=np.zeros(3))
    reference = read_reference(tmp_path / "stats.npz", 6)
    ours = frechet_distance(Moments.nothing(6).add(x), Moments.nothing(6).add(y))
    assert frechet_distance(Moments.nothing(6).add(x), reference) == pytest.approx(ours, rel=1e-10)


class Opens:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"mu": np.zeros(6)}, "sigma"),
        ({"mu": np.zeros(5), "sigma": np.eye(5)}, "of 6 features"),
        ({"mu": np.zeros(6), "sigma": np.full((6, 6), np.nan)}, "not all"),
        ({"mu": np.zeros(6), "sigma": np.arange(36.0).reshape(6, 6)}, "not symmetric"),
        ({"mu": np.array([Opens()], object), "sigma": np.eye(6)}, "cannot be read"),
    ],
)
def test_other_files_are_refused(
    arrays: dict[str, np.ndarray], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "stats.npz", **arrays)
    with pytest.raises(DataError, match=complaint):
        read_reference(tmp_path / "stats.npz", 6)
    assert not (tmp_path / "executed").exists()


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stats.npz").write_text("<html>")
    with pytest.raises(DataError, match="cannot be read as statistics"):
        read_reference(tmp_path / "stats.npz", 6)
