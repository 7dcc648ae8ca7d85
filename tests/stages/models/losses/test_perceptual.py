"""Perceptual distances: what they measure, that they stay frozen, and what they say when weights are missing."""

from __future__ import annotations

import hashlib
import urllib.error
from pathlib import Path
from typing import Any

import lpips
import pytest
import torch
import torchvision
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.errors import ConfigError
from stages.models.losses import perceptual
from stages.models.losses.configs import LossConfig, PerceptualConfig
from stages.models.losses.perceptual import build_perceptual, load_torchvision_weights


def picture(channels: int = 3) -> Tensor:
    ramp = torch.linspace(-1, 1, 32)
    x_HW = torch.sin(6 * ramp)[:, None] * torch.cos(9 * ramp)[None]
    return x_HW.expand(2, channels, 32, 32).clone()


@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_zero_for_equal_pictures_and_grows_with_the_damage(channels: int) -> None:
    distance = build_perceptual(PerceptualConfig())
    noise = torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(0))

    values = [distance(picture(channels), picture(channels) + amount * noise).mean() for amount in (0, 0.1, 0.3)]

    assert float(values[0]) == 0.0
    assert 0.01 < float(values[1]) < float(values[2]) < 12


def test_the_gradient_goes_to_the_reconstruction_alone() -> None:
    distance = build_perceptual(PerceptualConfig(stages=(0, 2)))
    x_BCHW, x_hat_BCHW = picture().requires_grad_(), (picture() * 0.5).requires_grad_()
    distance(x_BCHW, x_hat_BCHW).sum().backward()

    assert x_BCHW.grad is None
    assert x_hat_BCHW.grad is not None and float(x_hat_BCHW.grad.abs().max()) > 0
    assert not [name for name, parameter in distance.named_parameters() if parameter.requires_grad]
    parent = nn.ModuleList([distance]).train()
    assert parent.training
    assert not any(module.training for module in distance.modules())


def test_none_costs_and_measures_nothing() -> None:
    assert build_perceptual(PerceptualConfig(kind="none"))(picture(), -picture()).tolist() == [0.0, 0.0]


def test_stages_out_of_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="ascending order"):
        PerceptualConfig(stages=(2, 0))
    with pytest.raises(ValidationError, match="ascending order"):
        PerceptualConfig(stages=(4, 5))
    with pytest.raises(ValidationError, match="both 0"):
        LossConfig(l1_weight=0, l2_weight=0)


@pytest.mark.parametrize(
    ("kind", "network", "layers"),
    [("alex", torchvision.models.alexnet, (1, 4, 7, 9, 11)), ("squeeze", torchvision.models.squeezenet1_1, None)],
)
def test_lpips_is_the_published_formula_over_torchvisions_features(
    kind: str, network: Any, layers: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    trunk = network(weights=None).eval()
    monkeypatch.setattr(perceptual, "load_torchvision_weights", lambda kind: trunk.state_dict())
    x_BCHW = nn.functional.interpolate(picture(), size=64)
    x_hat_BCHW = x_BCHW * 0.4 + 0.1

    actual_B = build_perceptual(PerceptualConfig(kind=kind))(x_BCHW, x_hat_BCHW)

    path = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{kind}.pth"
    heads = torch.load(path, map_location="cpu", weights_only=True)
    layers = layers or (1, 4, 7, 9, 10, 11, 12)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    a, b, expected_B = (x_BCHW - mean) / std, (x_hat_BCHW - mean) / std, torch.zeros(2)
    with torch.no_grad():
        for number, layer in enumerate(trunk.features):
            a, b = layer(a), layer(b)
            if number in layers:
                difference = (nn.functional.normalize(a) - nn.functional.normalize(b)).square()
                head = heads[f"lin{layers.index(number)}.model.1.weight"]
                expected_B += nn.functional.conv2d(difference, head).mean(dim=(1, 2, 3))
    torch.testing.assert_close(actual_B, expected_B, rtol=1e-3, atol=1e-6)


def test_missing_weights_are_named_with_the_place_where_they_belong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreachable(*arguments: Any, **settings: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"

    with pytest.raises(ConfigError) as raised:
        load_torchvision_weights("squeeze")
    assert str(place) in str(raised.value)
    assert "no network" in str(raised.value)

    place.parent.mkdir(parents=True)
    place.write_bytes(b"torn")
    with pytest.raises(ConfigError, match=hashlib.sha256(b"torn").hexdigest()[:8]):
        load_torchvision_weights("squeeze")
