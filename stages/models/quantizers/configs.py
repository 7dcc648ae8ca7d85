"""The configuration of each quantizer: how many codes of which length, and how they are learnt. Imports no torch."""

import math
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipeline.config import StrictModel

MOST_ENTROPY_BITS = 14
"""Of one group of a lookup-free quantizer: a vector's probabilities of 2**14 codes are 64 KiB in float32."""


class MovingCodebookConfig(StrictModel):
    """What codebooks of running means have in common."""

    decay: float = Field(default=0.97, ge=0, lt=1)
    """Share of the running sums kept at each step; 0.97 remembers about 33 steps, enough for a run of hundreds."""

    commitment: float = Field(default=0.25, ge=0)
    """Weight (beta) of the loss that keeps the encoder near its codes."""

    restart_threshold: float = Field(default=0.1, ge=0)
    """A code whose running count of vectors a step falls below this share of the mean is moved onto a vector of the
    current batch. 0 never restarts, and codes nobody chooses stay where they were."""


class EMAQuantizerConfig(MovingCodebookConfig):
    """A codebook that follows the running mean of the vectors it was chosen for (van den Oord et al. 2017, A.1)."""

    kind: Literal["ema"] = "ema"

    num_codes: PositiveInt = 512
    """Codes in the codebook; a token is a number below this."""

    dim: PositiveInt = 32
    """Length of a code."""


class CosineQuantizerConfig(MovingCodebookConfig):
    """A codebook of directions: codes and vectors have length 1 and few numbers each (Yu et al. 2022, ViT-VQGAN, 3.2).

    The codes are running means, as with `ema`.
    """

    kind: Literal["cosine"] = "cosine"

    num_codes: PositiveInt = 512
    """Codes in the codebook; a token is a number below this."""

    dim: Annotated[int, Field(ge=2)] = 8
    """Length of a code; ViT-VQGAN has 32, LlamaGen 8."""


class GradientQuantizerConfig(StrictModel):
    """A codebook trained by the generator's optimizer: VQGAN's own (van den Oord et al. 2017, eq. 3)."""

    kind: Literal["gradient"] = "gradient"

    num_codes: PositiveInt = 512
    """Codes in the codebook; a token is a number below this."""

    dim: PositiveInt = 32
    """Length of a code; published VQGANs have 256."""

    beta: float = Field(default=0.25, ge=0)
    """Weight of one of the two terms of the loss, see `legacy`."""

    legacy: bool = True
    """True: beta weighs the term that moves the codes, as in all published VQGANs. False: the one that moves the
    encoder, as the paper has it. taming-transformers calls it `legacy` too."""


class GumbelQuantizerConfig(StrictModel):
    """Codes drawn from a softmax whose temperature falls (Jang et al. 2017); the published f8 models of VQGAN.

    Made for long training: after 900 steps of 8 emoji of 32x32 it had about 10 of 128 codes in use, `ema` 124.
    """

    kind: Literal["gumbel"] = "gumbel"

    num_codes: PositiveInt = 512
    """Codes in the codebook; a token is a number below this. The published f8 model has 8192."""

    dim: PositiveInt = 32
    """Length of a code, and of the vectors before the projection to logits. Published: 256."""

    straight_through: bool = True
    """True: training, too, decodes single codes. False: it decodes the softmax's mixtures of all codes."""

    kl_weight: float = Field(default=5e-4, ge=0)
    """Weight of the divergence of the codes' probabilities from equal ones. The published f8 model has 1e-8."""

    temperature_start: PositiveFloat = 0.9
    """Temperature of the softmax at the first step."""

    temperature_end: PositiveFloat = 0.0625
    """Where the schedule ends. 1/16 as in DALL-E (Ramesh et al. 2021, A.2); the published f8 model has 1e-6."""

    temperature_steps: PositiveInt = 3200
    """Step at which it ends. Not derived from `steps`, so that raising those goes on with the same run."""

    temperature_schedule: Literal["cosine", "exponential", "constant"] = "cosine"
    """How it falls: along half a cosine, by the same factor at each step, or not at all."""

    def temperature_at(self, step: int) -> float:
        """The temperature of the update after `step` others."""
        progress = min(1.0, step / self.temperature_steps)
        start, end = self.temperature_start, self.temperature_end
        if self.temperature_schedule == "constant":
            return start
        if self.temperature_schedule == "exponential":
            return float(start * (end / start) ** progress)
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))

    @model_validator(mode="after")
    def _falls(self) -> "GumbelQuantizerConfig":
        if self.temperature_schedule != "constant" and self.temperature_end > self.temperature_start:
            raise ValueError(
                f"temperature_end {self.temperature_end} is above temperature_start {self.temperature_start}: lower "
                "it, or set temperature_schedule to constant"
            )
        return self


class FSQQuantizerConfig(StrictModel):
    """Finite scalar quantization (Mentzer et al. 2023): a few numbers, each rounded to one of some levels.

    No codebook, no loss, nothing to collapse.
    """

    kind: Literal["fsq"] = "fsq"

    levels: tuple[Annotated[int, Field(ge=2)], ...] = (8, 8, 8)
    """Levels of each number; their product is the number of codes: (8, 8, 8) has 512, (8, 5, 5, 5) 1,000. The paper
    recommends at least 5 each."""

    @property
    def num_codes(self) -> int:
        """Codes that there are."""
        return math.prod(self.levels)

    @property
    def dim(self) -> int:
        """Numbers of a code."""
        return len(self.levels)

    @model_validator(mode="after")
    def _has_levels(self) -> "FSQQuantizerConfig":
        if not self.levels:
            raise ValueError("levels is empty: give the number of levels of each number, e.g. [8, 8, 8]")
        return self


class LookupFreeQuantizerConfig(StrictModel):
    """Lookup-free quantization (Yu et al. 2023, MAGVIT-v2): the signs of a few numbers are the bits of the code."""

    kind: Literal["lookup_free"] = "lookup_free"

    bits: Annotated[int, Field(ge=1, le=20)] = 9
    """Numbers of a code; there are 2**bits codes."""

    commitment: float = Field(default=0.25, ge=0)
    """Weight of the loss that keeps the encoder near its codes."""

    entropy_weight: float = Field(default=0.1, ge=0)
    """Weight of the entropy loss (eq. 5): each vector is to be sure of its code, all together are to use all codes."""

    diversity: float = Field(default=1.0, ge=0)
    """Weight of the second of these aims relative to the first."""

    entropy_temperature: PositiveFloat = 1.0
    """Of the softmax over codes, by squared distance, whose entropies these are. Published code has 0.01: a number that
    is farther than about 0.01 from zero then feels nothing, and codes that fell out of use stay so. After 900 steps of
    8 emoji of 32x32, of 128 codes 32 were in use at 0.1, 110 at 1, 8 at 4."""

    entropy_groups: PositiveInt = 1
    """Groups of bits whose entropies are taken by themselves and added. 1 is exact and looks at 2**bits probabilities
    of each vector; more groups are cheap, and overrate the use of codes by what groups tell of one another."""

    @property
    def num_codes(self) -> int:
        """Codes that there are."""
        return 1 << self.bits

    @property
    def dim(self) -> int:
        """Numbers of a code."""
        return self.bits

    @model_validator(mode="after")
    def _groups_divide(self) -> "LookupFreeQuantizerConfig":
        divisors = [n for n in range(1, self.bits + 1) if self.bits % n == 0 and self.bits // n <= MOST_ENTROPY_BITS]
        if self.entropy_groups not in divisors:
            raise ValueError(
                f"entropy_groups {self.entropy_groups} does not cut {self.bits} bits into equal groups of at most "
                f"{MOST_ENTROPY_BITS}: choose one of {', '.join(map(str, divisors))}"
            )
        return self


TrainedQuantizerConfig = (
    EMAQuantizerConfig
    | CosineQuantizerConfig
    | GradientQuantizerConfig
    | GumbelQuantizerConfig
    | FSQQuantizerConfig
    | LookupFreeQuantizerConfig
)


class UsedCodesConfig(StrictModel):
    """Another quantizer whose codes were numbered anew, those that a corpus uses first. Made by `stages.used_codes`."""

    kind: Literal["used_codes"] = "used_codes"

    quantizer: Annotated[TrainedQuantizerConfig, Field(discriminator="kind")]
    """The quantizer as it was trained."""

    num_codes: PositiveInt
    """Codes that are left; one more than are used where unknown ones have a number of their own."""

    @property
    def dim(self) -> int:
        """Length of a code."""
        return self.quantizer.dim


QuantizerConfig = Annotated[TrainedQuantizerConfig | UsedCodesConfig, Field(discriminator="kind")]
