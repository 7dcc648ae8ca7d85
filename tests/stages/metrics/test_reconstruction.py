"""PSNR and L1 are taken per picture on the scale [0, 1], then averaged."""

import numpy as np
import pytest
import torch

from stages.metrics.reconstruction import picture_l1, picture_psnr


def test_psnr_of_each_picture_is_that_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-1, 1, (3, 3, 8, 8)), rng.uniform(-1, 1, (3, 3, 8, 8))
    expected = [
        metrics.peak_signal_noise_ratio((a + 1) / 2, (b + 1) / 2, data_range=1) for a, b in zip(x, y, strict=True)
    ]
    assert picture_psnr(torch.from_numpy(x), torch.from_numpy(y)).tolist() == pytest.approx(expected)


def test_a_shift_of_a_tenth_of_the_range_is_20_db_and_0_1() -> None:
    x = torch.zeros(2, 1, 4, 4)
    assert picture_psnr(x, x + 0.2).tolist() == pytest.approx([20.0, 20.0])
    assert picture_l1(x, x - 0.2).tolist() == pytest.approx([0.1, 0.1])


def test_an_exact_reconstruction_is_capped_at_100_db() -> None:
    x = torch.rand(2, 3, 4, 4)
    assert picture_psnr(x, x.clone()).tolist() == [100.0, 100.0]
