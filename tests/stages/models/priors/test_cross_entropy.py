"""The likelihood of tokens: equal to the plain one however it is sliced, in float32, and in little memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from stages.models.priors import cross_entropy
from stages.models.priors.cross_entropy import projected_token_nats, token_nats

B, T, V, W = 3, 10, 37, 8


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, weights, tokens, and what the gradient of each token's nats is multiplied with."""
    torch.manual_seed(0)
    x_BTW, weight_VW = torch.randn(B, T, W, dtype=dtype), torch.randn(V, W, dtype=dtype)
    return x_BTW.requires_grad_(), weight_VW.requires_grad_(), torch.randint(0, V, (B, T)), torch.randn(B, T)


def by_hand(x_BTW: Tensor, weight_VW: Tensor, tokens_BT: Tensor, factors_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nats and gradients in float64: the gradient of a softmax's logarithm is the softmax minus a one."""
    x_NW, weight_VW = x_BTW.detach().double().flatten(0, 1), weight_VW.detach().double()
    powers_NV = (x_NW @ weight_VW.T).exp()
    probabilities_NV = powers_NV / powers_NV.sum(1, keepdim=True)
    rows_N, tokens_N = torch.arange(len(x_NW)), tokens_BT.flatten()
    nats_BT = -probabilities_NV[rows_N, tokens_N].log().view(B, T)
    probabilities_NV[rows_N, tokens_N] -= 1
    moved_NV = probabilities_NV * factors_BT.double().flatten()[:, None]
    return nats_BT, (moved_NV @ weight_VW).view(B, T, W), moved_NV.T @ x_NW


@pytest.mark.parametrize("slice_logits", [None, 1, 4 * V, 30 * V])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_it_equals_the_plain_likelihood(
    monkeypatch: pytest.MonkeyPatch, slice_logits: int | None, dtype: torch.dtype, tolerance: float
) -> None:
    """Whole, or in slices of 1 row, of 4 (they do not divide the 30 evenly), of all."""
    if slice_logits is not None:
        monkeypatch.setattr(cross_entropy, "WHOLE_LOGITS", 0)
        monkeypatch.setattr(cross_entropy, "SLICE_LOGITS", slice_logits)
    x_BTW, weight_VW, tokens_BT, factors_BT = inputs(dtype)

    nats_BT = projected_token_nats(x_BTW, weight_VW, tokens_BT)
    (nats_BT * factors_BT).sum().backward()

    assert nats_BT.dtype == dtype
    expected = by_hand(x_BTW, weight_VW, tokens_BT, factors_BT)
    for found, wanted in zip((nats_BT, x_BTW.grad, weight_VW.grad), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=4 * tolerance)


def test_low_precision_logits_are_judged_in_float32() -> None:
    logits_BTV = torch.randn(2, 3, 11, dtype=torch.bfloat16)
    nats_BT = token_nats(logits_BTV, torch.zeros(2, 3, dtype=torch.long))
    assert nats_BT.dtype == torch.float32
    torch.testing.assert_close(nats_BT, -logits_BTV.float().log_softmax(-1)[:, :, 0])


def test_slices_under_autocast_multiply_in_bfloat16_and_judge_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "WHOLE_LOGITS", 0)
    monkeypatch.setattr(cross_entropy, "SLICE_LOGITS", 4 * V)
    x_BTW, weight_VW, tokens_BT, _ = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nats_BT = projected_token_nats(x_BTW, weight_VW, tokens_BT)
    nats_BT.sum().backward()
    low_x_BTW, low_weight_VW = (value.detach().bfloat16().requires_grad_() for value in (x_BTW, weight_VW))
    expected_BT = token_nats(low_x_BTW @ low_weight_VW.T, tokens_BT)
    expected_BT.sum().backward()
    assert nats_BT.dtype == torch.float32
    torch.testing.assert_close(nats_BT, expected_BT)
    assert x_BTW.grad is not None and low_x_BTW.grad is not None
    torch.testing.assert_close(x_BTW.grad, low_x_BTW.grad.float(), rtol=2e-2, atol=1e-2)


def test_what_waits_for_the_gradient_does_not_grow_with_the_codebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved between forward and backward: features, weights and tokens, where the plain way keeps B * T * V logits."""

    def saved(num_codes: int) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x_BTW, weight_VW = torch.randn(8, 64, 16, requires_grad=True), torch.randn(num_codes, 16, requires_grad=True)
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            nats_BT = projected_token_nats(x_BTW, weight_VW, torch.zeros(8, 64, dtype=torch.long))
        assert nats_BT.mean().item() > math.log(num_codes) / 2
        weights = weight_VW.untyped_storage()
        return sum(size for place, size in sizes.items() if place != weights.data_ptr())

    logits = 8 * 64 * 4096 * 4
    assert saved(4096) > logits
    monkeypatch.setattr(cross_entropy, "WHOLE_LOGITS", 2**20)
    monkeypatch.setattr(cross_entropy, "SLICE_LOGITS", 2**17)
    assert saved(4096) < logits / 50
