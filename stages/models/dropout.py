"""Random draws that belong to a training sample: pure functions of (seed, place in the order, site, element).

They are the same on one rank and on eight, in one micro-batch or four, on CPUs and GPUs, and resuming needs no stored
generator. The generator is splitmix64 (Steele, Lea & Flood 2014), used by counter and nested: a seed's stream gives
keys to samples, a key's stream gives keys to sites (the places in a network that draw), a site's stream gives words.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Shapes: B batch, G condition segments, N words of a sample, T tokens. Words are 64 random bits in an int64; its
# arithmetic wraps around.


def sample_keys(seed: int, positions_B: Tensor) -> Tensor:
    """Keys [B], int64, of the samples at these places in the order of a training with this seed."""
    seed_key = _mixed(torch.tensor(_signed(seed), device=positions_B.device))
    return _mixed((positions_B.long() + 1) * _GAMMA + seed_key)


def random_words(keys_B: Tensor, site: int, count: int) -> Tensor:
    """Words [B, N], int64: the first `count` of each sample's stream at this site."""
    site_keys_B = _mixed(keys_B + _signed((site + 1) * _GAMMA))
    steps_N = torch.arange(1, count + 1, device=keys_B.device) * _GAMMA
    return _mixed(site_keys_B[:, None] + steps_N)


def happens(words: Tensor, share: float) -> Tensor:
    """Whether an event of probability `share` happens, to 2**-32: a boolean for each word, from its lower half."""
    return (words & _LOWER_HALF) < round(share * 2**32)


def drop_segments(keys_B: Tensor, site: int, num_segments: int, share: float) -> Tensor:
    """Which conditions training hides [B, G]: in a `share` of samples all of them, in the others each by itself.

    Guidance needs samples of which nothing is given; that one condition is given and another is not, the prior learns
    from those that lose some. With a single condition only the first draw counts.
    """
    words_BG = random_words(keys_B, site, num_segments + 1)
    dropped_BG = happens(words_BG[:, 1:], share if num_segments > 1 else 0.0)
    return dropped_BG | happens(words_BG[:, :1], share)


def replace_tokens(tokens_BT: Tensor, keys_B: Tensor, site: int, *, share: float, num_codes: int) -> Tensor:
    """`tokens_BT` with a `share` of them, chosen at random, replaced by codes drawn uniformly from all `num_codes`."""
    words_BT = random_words(keys_B, site, tokens_BT.shape[1])
    codes_BT = (((words_BT >> 32) & _LOWER_HALF) * num_codes) >> 32
    return torch.where(happens(words_BT, share), codes_BT, tokens_BT)


class SampleDropout(nn.Module):
    """Dropout (Srivastava et al. 2014) of one site, with a mask that follows from the samples' keys.

    An element costs one random byte: rates are rounded to multiples of 1/256 (but to no less than 1/256, unless they
    are 0), and what stays is scaled by the exact probability that it does.
    """

    def __init__(self, rate: float, site: int) -> None:
        """`rate` in [0, 1); `site` is a number that no other place in the network has."""
        super().__init__()
        assert 0 <= rate < 1
        self.site = site
        self.threshold = min(255, max(1, round(256 * rate))) if rate else 0
        self.scale = 256 / (256 - self.threshold)

    def forward(self, x: Tensor, keys_B: Tensor | None) -> Tensor:
        """Drop elements of `x` [B, ...]; without keys, or at rate 0, it is `x` itself."""
        if keys_B is None or not self.threshold:
            return x
        # Multiplying by a boolean, or choosing by it, is slower on CPUs than by numbers of the same type.
        return x * self.mask(keys_B, x.shape[1:]).to(x.dtype) * self.scale

    def mask(self, keys_B: Tensor, shape: torch.Size) -> Tensor:
        """Which elements stay: bool [B, *shape]."""
        count = math.prod(shape)
        bytes_BN = random_words(keys_B, self.site, -(-count // 8)).view(torch.uint8)
        return (bytes_BN[:, :count] >= self.threshold).reshape(len(keys_B), *shape)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"rate={self.threshold}/256, site={self.site}"


def _signed(value: int) -> int:
    """The int64 that has the lower 64 bits of `value`."""
    return (value + 2**63) % 2**64 - 2**63


_GAMMA, _FACTOR_1, _FACTOR_2 = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_LOWER_HALF = 2**32 - 1


def _mixed(z: Tensor) -> Tensor:
    """The output function of splitmix64; may overwrite `z`."""
    z = _xor_shifted(z, 30).mul_(_FACTOR_1)
    z = _xor_shifted(z, 27).mul_(_FACTOR_2)
    return _xor_shifted(z, 31)


def _xor_shifted(z: Tensor, bits: int) -> Tensor:
    """`z ^= z >> bits` with a logical shift, in place: torch's own fills up with the sign."""
    return z.bitwise_xor_((z >> bits).bitwise_and_(2 ** (64 - bits) - 1))
