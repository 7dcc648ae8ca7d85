"""Lookup-free quantization (Yu et al. 2023, MAGVIT-v2, arXiv:2310.05737): signs as bits, and an entropy loss.

Legend: B batch, C bits of a code, H height, W width, N vectors, G groups of bits, K codes of a group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.models.precision import full_precision
from stages.models.quantizers.configs import LookupFreeQuantizerConfig
from stages.models.quantizers.quantizer import Quantized, Quantizer, StepKeys, exact


class LookupFreeQuantizer(Quantizer):
    """Codes are the corners of the cube [-1, 1]**C; the first number is the highest bit.

    The entropy loss is E[H(p)] - diversity * H(E[p]) (eq. 5), p the softmax over all codes of their negative squared
    distances to a vector by `entropy_temperature`, E the mean over the vectors of the global batch. The first term is
    exact: bits are independent given the vector. So is the second, on any number of ranks and micro-batches, with its
    gradient, where there is one group of bits; with several it is the sum of their entropies, an upper bound.
    """

    looks_at_batches = True
    strides_C: Tensor
    corners_IK: Tensor

    def __init__(self, config: LookupFreeQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_codes, self.dim = config.num_codes, config.dim
        strides_C = 2 ** torch.arange(config.bits).flip(0)
        bits = config.bits // config.entropy_groups
        corners_IK = torch.arange(2**bits) // strides_C[-bits:, None] % 2
        self.register_buffer("strides_C", strides_C, persistent=False)
        self.register_buffer("corners_IK", corners_IK.to(torch.get_default_dtype()), persistent=False)

    def forward(self, z_BCHW: Tensor, at: StepKeys | None = None) -> Quantized:
        """z_BCHW to the signs of its numbers; the gradient goes straight to the vectors.

        Each picture's loss is its commitment (mean squared distance) and its vectors' mean entropy; what the global
        batch adds, see `batch_loss`.
        """
        with exact(z_BCHW):
            z = full_precision(z_BCHW)
            bits_BCHW = z.detach() > 0
            codes_BCHW = bits_BCHW.to(z.dtype) * 2 - 1
            commitment_B = F.mse_loss(z, codes_BCHW, reduction="none").mean(dim=(1, 2, 3))
            # The logits of a bit: its two values are 4 z apart in squared distance.
            logits_BCHW = 4 * z / self.config.entropy_temperature
            entropy_B = _entropy(logits_BCHW).sum(dim=1).mean(dim=(1, 2))
            return Quantized(
                z + (codes_BCHW - z).detach(),
                self.config.commitment * commitment_B + self.config.entropy_weight * entropy_B,
                self._numbers(bits_BCHW),
                self._soft_counts(logits_BCHW),
            )

    @torch.no_grad()
    def nearest(self, z_BCHW: Tensor) -> Tensor:
        """The signs as a number at each place: z_BCHW -> indices_BHW."""
        return self._numbers(z_BCHW > 0)

    def embed(self, indices_BHW: Tensor) -> Tensor:
        """The signs of these numbers: indices_BHW -> z_q_BCHW."""
        bits_BCHW = indices_BHW[:, None] // self.strides_C.view(1, -1, 1, 1) % 2
        return bits_BCHW.to(self.corners_IK.dtype) * 2 - 1

    def batch_loss(self, soft_counts_BGK: Tensor, total_GK: Tensor) -> Tensor:
        """Each picture's share of -entropy_weight * diversity * H(E[p]).

        -H(m) = sum m log m has the gradient log m, but for a constant that probabilities, which add up to 1, do not
        feel: with log m held fixed, the mean of soft counts * log m has both the value and the gradient.
        """
        smallest = torch.finfo(total_GK.dtype).tiny
        log_mean_GK = (total_GK / total_GK.sum(dim=1, keepdim=True)).clamp(min=smallest).log()
        places = soft_counts_BGK.detach().sum(dim=2, keepdim=True)
        shares_B = (soft_counts_BGK / places * log_mean_GK).sum(dim=(1, 2))
        return self.config.entropy_weight * self.config.diversity * shares_B

    def _soft_counts(self, logits_BCHW: Tensor) -> Tensor:
        batch, groups, bits = len(logits_BCHW), self.config.entropy_groups, len(self.corners_IK)
        logits_BNGI = logits_BCHW.flatten(2).transpose(1, 2).reshape(batch, -1, groups, bits)
        # A code's logit is the sum of the logits of its ones, up to what all codes of a vector have in common.
        return (logits_BNGI @ self.corners_IK.to(logits_BCHW.dtype)).softmax(dim=3).sum(dim=1)

    def _numbers(self, bits_BCHW: Tensor) -> Tensor:
        return (bits_BCHW * self.strides_C.view(1, -1, 1, 1)).sum(dim=1)


def _entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of each coin whose heads have the probability sigmoid(logit)."""
    # Of the rarer side, whose probability keeps its digits however sure the coin is.
    rarer = -logits.abs()
    return F.softplus(rarer) - rarer * torch.sigmoid(rarer)
