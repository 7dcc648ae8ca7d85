"""GroupNorm followed by SiLU, as one step on CPUs: torch's own backward of GroupNorm is slow there.

Legend: B batch, C channels, H height, W width, G groups, D channels of a group.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.layers.eager import runs_eagerly_on_cpu


class NormSiLU(nn.GroupNorm):
    """SiLU(GroupNorm(x)); a GroupNorm's weights and names (Wu & He 2018; Elfwing et al. 2017).

    Under autocast, in half precision, on other devices, and when compiled or exported it is torch's two layers.
    """

    def forward(self, input: Tensor) -> Tensor:
        """x_BCHW normalized within each group of channels, then x * sigmoid(x)."""
        if runs_eagerly_on_cpu(input) and input.dtype == self.weight.dtype:
            fused_BCHW: Tensor = _NormSiLU.apply(input, self.weight, self.bias, self.num_groups, self.eps)
            return fused_BCHW
        return F.silu(super().forward(input))


class _NormSiLU(torch.autograd.Function):
    """Saves the input alone, and goes over the map as seldom as whole-tensor operations allow.

    With r = 1/std and u = weight * (x - mean) * r + bias, all of a group: u = x * scale + shift of each channel.
    """

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float) -> Tensor:
        batch, channels, height, width = x_BCHW.shape
        y_BCHW, mean_BG, rstd_BG = torch.native_group_norm(
            x_BCHW, weight_C, bias_C, batch, channels, height * width, groups, eps
        )
        ctx.save_for_backward(x_BCHW, weight_C, bias_C, mean_BG, rstd_BG)
        return F.silu(y_BCHW, inplace=True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, weight_C, bias_C, mean_BG, rstd_BG = ctx.saved_tensors
        batch, channels, height, width = x_BCHW.shape
        groups = mean_BG.shape[1]
        group_size = channels // groups
        mean_BC, rstd_BC = (of_BG.repeat_interleave(group_size, dim=1) for of_BG in (mean_BG, rstd_BG))
        scale_BC = weight_C * rstd_BC
        u_BCHW = torch.addcmul(_map(bias_C - mean_BC * scale_BC), x_BCHW, _map(scale_BC))
        du_BCHW = torch.ops.aten.silu_backward(grad_BCHW, u_BCHW)
        sum_BC = du_BCHW.sum(dim=(2, 3))
        torch.mul(du_BCHW, x_BCHW, out=u_BCHW)
        moment_BC = (u_BCHW.sum(dim=(2, 3)) - mean_BC * sum_BC) * rstd_BC  # sum of du * (x - mean) * r
        # d/dx of the group: r * (w du - mean of w du - x_normalized * mean of w du x_normalized)
        size = group_size * height * width
        mean_BG, moment_BG = (
            (of_BC * weight_C).view(batch, groups, group_size).sum(dim=2) / size for of_BC in (sum_BC, moment_BC)
        )
        slope_BC = -(moment_BG * rstd_BG.square()).repeat_interleave(group_size, dim=1)
        offset_BC = -(mean_BG * rstd_BG).repeat_interleave(group_size, dim=1) - slope_BC * mean_BC
        dx_BCHW = torch.addcmul(_map(offset_BC), x_BCHW, _map(slope_BC), out=u_BCHW)
        dx_BCHW.addcmul_(du_BCHW, _map(scale_BC))
        return dx_BCHW, moment_BC.sum(dim=0), sum_BC.sum(dim=0), None, None


def _map(of_BC: Tensor) -> Tensor:
    return of_BC[:, :, None, None]
