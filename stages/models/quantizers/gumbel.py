"""Codes drawn by the Gumbel-softmax (Jang et al. 2017), with taming-transformers' weights and arithmetic.

Legend: B batch, C length of a code, H height, W width, K codes.
"""

import math

import torch
from torch import Tensor, nn

from stages.models.dropout import random_words
from stages.models.precision import full_precision
from stages.models.quantizers.codebook import CodeTable
from stages.models.quantizers.configs import GumbelQuantizerConfig
from stages.models.quantizers.quantizer import Quantized, Quantizer, StepKeys, exact

SITE = 1 << 20
"""Keeps these draws apart from all others of a picture, see `stages.models.dropout`."""
TINY = 1e-10
"""Added to probabilities before their logarithm is taken, as the reference does."""


class GumbelQuantizer(Quantizer):
    """A vector is projected to one logit a code; training draws codes, and afterwards the likeliest is taken."""

    def __init__(self, config: GumbelQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_codes, self.dim = config.num_codes, config.dim
        self.proj = nn.Conv2d(config.dim, config.num_codes, 1)
        self.embed: CodeTable = CodeTable(config.num_codes, config.dim)

    def forward(self, z_BCHW: Tensor, at: StepKeys | None = None) -> Quantized:
        """z_BCHW to drawn codes, or to mixtures of codes where `straight_through` is off.

        The gradient is that of the softmax of (logits + Gumbel noise) / temperature. Without `at` there is no noise,
        codes are the likeliest, and the temperature is the first. The loss is the divergence of the codes'
        probabilities from equal ones, in nats, averaged over the picture.
        """
        with exact(z_BCHW):
            logits_BKHW = self._logits(z_BCHW)
            temperature = self.config.temperature_at(at.step if at else 0)
            noisy_BKHW = logits_BKHW + gumbel_noise(at.keys_B, logits_BKHW) if at else logits_BKHW
            weights_BKHW = (noisy_BKHW / temperature).softmax(dim=1)
            indices_BHW = noisy_BKHW.argmax(dim=1)
            if self.config.straight_through or at is None:
                chosen_BKHW = torch.zeros_like(weights_BKHW).scatter_(1, indices_BHW[:, None], 1.0)
                weights_BKHW = chosen_BKHW + (weights_BKHW - weights_BKHW.detach())
            z_q_BCHW = torch.einsum("bkhw,kc->bchw", weights_BKHW, self.embed.weight)
            shares_BKHW = logits_BKHW.softmax(dim=1)
            divergence_BHW = (shares_BKHW * (shares_BKHW * self.num_codes + TINY).log()).sum(dim=1)
            return Quantized(z_q_BCHW, self.config.kl_weight * divergence_BHW.mean(dim=(1, 2)), indices_BHW)

    @torch.no_grad()
    def nearest(self, z_BCHW: Tensor) -> Tensor:
        """The likeliest code at each place: z_BCHW -> indices_BHW."""
        with exact(z_BCHW):
            return self._logits(z_BCHW).argmax(dim=1)

    def _logits(self, z_BCHW: Tensor) -> Tensor:
        logits_BKHW: Tensor = self.proj(full_precision(z_BCHW))
        return logits_BKHW


def gumbel_noise(keys_B: Tensor, like_BKHW: Tensor) -> Tensor:
    """Standard Gumbel noise in the shape of `like_BKHW` that follows from the pictures' keys.

    -log(-log u) with u of 23 random bits and a half, which float32 holds: never 0 or 1, and all types draw alike.
    """
    count = math.prod(like_BKHW.shape[1:])
    words_BN = random_words(keys_B, SITE, -(-count // 2)).view(torch.int32)[:, :count]
    u_BN = ((words_BN & (2**23 - 1)).to(like_BKHW.dtype) + 0.5) * 2.0**-23
    return -torch.log(-torch.log(u_BN)).view(like_BKHW.shape)
