"""Configuration of the losses a tokenizer is trained with. Imports no torch."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipeline.config import StrictModel


class DiscriminatorConfig(StrictModel):
    """The PatchGAN discriminator (Isola et al. 2017) and when and how strongly the generator feels it."""

    base_channels: PositiveInt = 16
    """Channels of the first layer (`ndf`); each further layer doubles them, up to eight times."""

    num_layers: PositiveInt = 2
    """Stride-2 layers: 2 suit 64 pixels (patches of 34 pixels with a step of 4), 3 suit 256."""

    norm: Literal["group", "batch", "spectral", "none"] = "group"
    """`group`: GroupNorm, the same on any number of ranks. `batch`: as published; its statistics are those of each
    micro-batch of each rank by itself. `spectral`: every convolution is scaled to a largest singular value of 1 (Miyato
    et al. 2018) by one power iteration a step. `none`: neither."""

    loss: Literal["hinge", "vanilla", "non_saturating"] = "hinge"
    """`hinge` (Lim & Ye 2017). `vanilla`: the logistic loss for the discriminator, minus the logits for the generator,
    as taming-transformers has it. `non_saturating`: the logistic loss for both (Goodfellow et al. 2014)."""

    lecam_weight: NonNegativeFloat = 0.0
    """Of LeCam's regularisation (Tseng et al. 2021), which keeps logits near their running means so that a few
    pictures are not learnt by heart; 0 does without."""

    lecam_decay: float = Field(default=0.99, ge=0, lt=1)
    """Share of the running means of the logits that is kept at each update of the discriminator."""

    clip_gradient: PositiveFloat | None = None
    """Largest norm of the gradient of an update, over all ranks; longer ones are scaled down. Null: never."""

    weight: NonNegativeFloat = 0.2
    """Size of the adversarial gradient in the last layer, relative to that of reconstruction; published: 0.8."""

    start: NonNegativeInt = 2200
    """Step of the discriminator's first update."""

    warmup_steps: NonNegativeInt = 200
    """Updates of the discriminator before the generator feels it; an untrained one ruins reconstructions."""

    ramp_steps: NonNegativeInt = 300
    """Steps over which its weight then rises from 0."""

    adaptive_delta: PositiveFloat = 1e-6
    """Added to the norm of the adversarial gradient before dividing by it; the paper has 1e-6, its code 1e-4."""

    adaptive_cap: PositiveFloat = 1e4
    """Upper limit of the ratio of gradient norms."""

    learning_rate: PositiveFloat = 1e-4
    """Of the discriminator's optimizer, constant. At 4e-4 it was certain of every emoji after some hundred steps."""

    @property
    def generator_start(self) -> int:
        """The first step at which the generator feels the discriminator."""
        return self.start + self.warmup_steps

    def weight_at(self, step: int) -> float:
        """Weight of the adversarial gradient at `step`, before the adaptive ratio."""
        since = step - self.generator_start
        if since < 0 or self.weight == 0:
            return 0.0
        return self.weight * min(1.0, (since + 1) / (self.ramp_steps + 1))

    @model_validator(mode="after")
    def _groups_divide(self) -> "DiscriminatorConfig":
        if self.norm == "group" and self.base_channels % 8:
            raise ValueError(
                f"base_channels {self.base_channels} of the discriminator: GroupNorm needs a multiple of 8; take "
                f"{-(-self.base_channels // 8) * 8}, or another norm"
            )
        return self


class PerceptualConfig(StrictModel):
    """The network whose features the perceptual distance compares."""

    kind: Literal["efficientnet_lite0", "vgg", "alex", "squeeze", "none"] = "efficientnet_lite0"
    """`efficientnet_lite0`: packaged weights, cheap, uncalibrated. `vgg`, `alex`, `squeeze`: LPIPS (Zhang et al. 2018);
    their backbones come from torchvision's download or from TORCH_HOME. `none`: no perceptual loss."""

    stages: tuple[int, ...] = (0, 1)
    """Stages of efficientnet_lite0 that are compared, at strides 2, 4, 8, 16, 32; later ones cost more."""

    @model_validator(mode="after")
    def _stages_exist(self) -> "PerceptualConfig":
        if not self.stages or list(self.stages) != sorted(set(self.stages) & set(range(5))):
            raise ValueError(f"stages {list(self.stages)}: give some of 0, 1, 2, 3, 4 in ascending order")
        return self


class LossConfig(StrictModel):
    """The terms of the generator's loss."""

    l1_weight: NonNegativeFloat = 1.0
    """Of the mean absolute difference of pixels."""

    l2_weight: NonNegativeFloat = 1.0
    """Of the mean squared difference of pixels; PSNR measures this one."""

    perceptual_weight: NonNegativeFloat = 0.1
    """Of the perceptual distance."""

    perceptual: PerceptualConfig = PerceptualConfig()
    """Which perceptual distance."""

    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    """The adversarial term; a weight of 0 trains without one."""

    max_skipped_steps: int = Field(default=10, ge=0)
    """Steps in a row whose gradient is not finite before the run ends; each is skipped and counted."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> "LossConfig":
        if self.l1_weight == 0 and self.l2_weight == 0:
            raise ValueError("l1_weight and l2_weight are both 0: nothing ties the reconstruction to its picture")
        return self


class MapDiscriminatorConfig(DiscriminatorConfig):
    """The discriminator of maps, which does nothing unless it is given a weight."""

    weight: NonNegativeFloat = 0.0
    """Size of the adversarial gradient in the last layer, relative to that of reconstruction."""


class MapLossConfig(LossConfig):
    """The terms of the loss of a tokenizer of maps."""

    perceptual_weight: NonNegativeFloat = 0.0
    """Of the perceptual distance."""

    discriminator: MapDiscriminatorConfig = MapDiscriminatorConfig()
    """The adversarial term; a weight of 0 trains without one."""
