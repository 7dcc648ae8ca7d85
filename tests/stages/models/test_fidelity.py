"""PSNR, SSIM and errors are taken per picture on the scale [0, 1], as scikit-image takes them."""

import numpy as np
import pytest
import torch
from skimage import metrics

from stages.models.fidelity import picture_l1, picture_mse, picture_psnr, picture_ssim


def pair(*, size: tuple[int, int] = (24, 19), channels: int = 3, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (4, channels, *size))
    return x, np.clip(x + rng.normal(0, noise, x.shape), -1, 1)


def test_psnr_of_each_picture_is_that_of_scikit_image() -> None:
    x, y = pair()
    expected = [
        metrics.peak_signal_noise_ratio((a + 1) / 2, (b + 1) / 2, data_range=1) for a, b in zip(x, y, strict=True)
    ]
    assert picture_psnr(torch.from_numpy(x), torch.from_numpy(y)).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("noise", [0.01, 0.3, 2.0])
def test_ssim_of_each_picture_is_that_of_scikit_image_with_the_papers_settings(channels: int, noise: float) -> None:
    x, y = pair(channels=channels, noise=noise)
    paper = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1, "channel_axis": 0}
    expected = [metrics.structural_similarity((a + 1) / 2, (b + 1) / 2, **paper) for a, b in zip(x, y, strict=True)]
    assert picture_ssim(torch.from_numpy(x), torch.from_numpy(y)).tolist() == pytest.approx(expected, abs=1e-10)


def test_ssim_of_8_bit_pictures_in_single_precision_is_that_of_scikit_image() -> None:
    rng = np.random.default_rng(1)
    x = np.kron(rng.integers(0, 256, (2, 3, 8, 8)), np.ones((8, 8))).astype(np.uint8)
    y = (x + rng.normal(0, 20, x.shape)).clip(0, 255).astype(np.uint8)
    in_model_range = [torch.from_numpy(pictures.astype(np.float32) / 127.5 - 1) for pictures in (x, y)]
    paper = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = [metrics.structural_similarity(a, b, channel_axis=0, **paper) for a, b in zip(x, y, strict=True)]
    assert picture_ssim(*in_model_range).tolist() == pytest.approx(expected, abs=1e-6)


def test_ssim_of_a_picture_with_itself_is_1_and_with_its_negative_below_0() -> None:
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    assert picture_ssim(x, x).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)
    assert max(picture_ssim(x, -x).tolist()) < 0


def test_ssim_of_a_picture_smaller_than_its_window_is_refused() -> None:
    with pytest.raises(AssertionError, match="11x11"):
        picture_ssim(torch.zeros(1, 1, 10, 16), torch.zeros(1, 1, 10, 16))


def test_figures_of_a_picture_do_not_depend_on_its_batch() -> None:
    x, y = (torch.from_numpy(pictures) for pictures in pair())
    for figure in (picture_mse, picture_l1, picture_psnr, picture_ssim):
        pieces = torch.cat([figure(x[:1], y[:1]), figure(x[1:], y[1:])])
        assert torch.allclose(pieces, figure(x, y), rtol=1e-12, atol=0), figure.__name__


def test_a_shift_of_a_tenth_of_the_range_is_20_db_and_0_1() -> None:
    x = torch.zeros(2, 1, 4, 4)
    assert picture_psnr(x, x + 0.2).tolist() == pytest.approx([20.0, 20.0])
    assert picture_l1(x, x - 0.2).tolist() == pytest.approx([0.1, 0.1])
    assert picture_mse(x, x - 0.2).tolist() == pytest.approx([0.01, 0.01])


def test_an_exact_reconstruction_is_capped_at_100_db() -> None:
    x = torch.rand(2, 3, 4, 4)
    assert picture_psnr(x, x.clone()).tolist() == [100.0, 100.0]
