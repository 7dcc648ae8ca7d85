"""How close pictures come to their originals, picture by picture: squared and absolute error, PSNR, SSIM.

Pictures come in [-1, 1] and are compared on the scale [0, 1], in float64. Legend: B batch, C channels, H height,
W width. Each function returns one number a picture, so figures over any number of batches are sums of these.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PSNR_CAP = 100.0  # dB, for a picture that comes back exactly
SSIM_WINDOW = 11
"""Side of SSIM's window in pixels: smaller pictures have none."""
SSIM_SIGMA = 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # (K1 L)^2 and (K2 L)^2 for the range L = 1


def round_to_8_bits(x_BCHW: Tensor) -> Tensor:
    """Pictures as they would be stored: each value the nearest of 256 in [-1, 1]."""
    return ((x_BCHW.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def picture_mse(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Mean squared error of each picture: mse_B."""
    return ((x_BCHW.double() - y_BCHW.double()) / 2).square().mean(dim=(1, 2, 3))


def picture_l1(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Mean absolute error of each picture: l1_B."""
    return ((x_BCHW.double() - y_BCHW.double()) / 2).abs().mean(dim=(1, 2, 3))


def picture_psnr(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """-10 log10(mean squared error) of each picture in dB, at most 100: psnr_B."""
    return -10 * picture_mse(x_BCHW, y_BCHW).clamp(min=10 ** (-PSNR_CAP / 10)).log10()


def picture_ssim(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Structural similarity of each picture, averaged over channels and windows: ssim_B, 1 for equal pictures.

    Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", equation 13 with
    their Gaussian window of 11x11 pixels (sigma 1.5), K1 = 0.01, K2 = 0.03, over windows that lie wholly inside.
    Pictures must be at least SSIM_WINDOW pixels wide and high.
    """
    assert min(x_BCHW.shape[2:]) >= SSIM_WINDOW, f"SSIM needs pictures of {SSIM_WINDOW}x{SSIM_WINDOW} at least"
    x_BCHW, y_BCHW = ((pictures_BCHW.double() + 1) / 2 for pictures_BCHW in (x_BCHW, y_BCHW))
    maps = (x_BCHW, y_BCHW, x_BCHW.square(), y_BCHW.square(), x_BCHW * y_BCHW)
    mean_x, mean_y, square_x, square_y, product = (_window_means(map_BCHW) for map_BCHW in maps)
    variances = square_x - mean_x.square() + square_y - mean_y.square()
    covariance = product - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x.square() + mean_y.square() + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variances + SSIM_C2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _window_means(x_BCHW: Tensor) -> Tensor:
    """The Gaussian-weighted mean of every window inside: [B, C, H, W] -> [B, C, H - 10, W - 10], one axis at a time."""
    offsets = torch.arange(SSIM_WINDOW, dtype=x_BCHW.dtype, device=x_BCHW.device) - SSIM_WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    weights = weights / weights.sum()
    batch, channels, height, width = x_BCHW.shape
    flat_N1HW = x_BCHW.reshape(batch * channels, 1, height, width)
    flat_N1HW = F.conv2d(F.conv2d(flat_N1HW, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return flat_N1HW.view(batch, channels, *flat_N1HW.shape[2:])
