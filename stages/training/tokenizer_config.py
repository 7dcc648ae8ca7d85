"""The configuration of the tokenizer stage: model, losses, optimizer, schedule. Imports no torch."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from pipeline.config import StrictModel
from pipeline.errors import ConfigError
from stages.models.losses.configs import LossConfig, MapLossConfig
from stages.models.pretrained import Part, absolute
from stages.models.tokenizer_config import TokenizerModelConfig


class TokenizerOptimizerConfig(StrictModel):
    """Adam for both networks; only the generator's learning rate has a schedule."""

    learning_rate: PositiveFloat = 1e-3
    """Of the generator, after warm-up. Published: 4.5e-6 for each picture of the batch, for much larger networks."""

    warmup_steps: NonNegativeInt = 20
    """Steps over which it rises linearly from 0."""

    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How it falls after warm-up: not at all, along a line, along half a cosine."""

    schedule_steps: PositiveInt | None = 3200
    """Step at which it has fallen to `min_learning_rate`, where it stays; null: it stays at its peak, as with
    `schedule: constant`. Not derived from `steps`, so that raising `steps` goes on with the same run."""

    min_learning_rate: NonNegativeFloat = 2e-5
    """Where the schedule ends."""

    clip_gradient: PositiveFloat | None = None
    """Largest norm of the generator's gradient of an update, over all ranks; longer ones are scaled down. Null: never.
    The discriminator has its own in `losses.discriminator`."""

    betas: tuple[float, float] = (0.5, 0.99)
    """Adam's decay rates, of both optimizers. Published: 0.5, 0.9."""

    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay (AdamW) of the generator; 0 is plain Adam."""

    @model_validator(mode="after")
    def _agrees(self) -> "TokenizerOptimizerConfig":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)}: both are at least 0 and below 1")
        if self.schedule == "constant" or self.schedule_steps is None:
            return self
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}: lower it, "
                "or set schedule to constant"
            )
        if self.schedule_steps <= self.warmup_steps:
            raise ValueError(
                f"schedule_steps {self.schedule_steps} ends before warmup_steps {self.warmup_steps}: "
                "raise the first or lower the second"
            )
        return self


class TokenizerConfig(StrictModel):
    """How a tokenizer is trained."""

    section: ClassVar[Part] = "tokenizer"
    """Which section of the experiment this is."""

    model: TokenizerModelConfig = TokenizerModelConfig()
    """Encoder, codebook, decoder."""

    losses: LossConfig = LossConfig()
    """The terms of the loss, and the discriminator."""

    optimizer: TokenizerOptimizerConfig = TokenizerOptimizerConfig()
    """Learning rates and schedule."""

    image_size: PositiveInt | None = None
    """Side in pixels of the pictures it learns: below that of the stored ones, windows of them. Null: the same."""

    from_checkpoint: Annotated[str, AfterValidator(absolute)] | None = Field(default=None, exclude=True)
    """Start from trained weights: the folder of an earlier run, of a published model or of an import, or a .ckpt of
    taming-transformers; its discriminator goes on too. `model` must be the checkpoint's. With `steps: 0` the tokenizer
    is taken as it is. In the fingerprint the files' content counts, not where they lie."""

    steps: NonNegativeInt = 3200
    """Updates of the generator. Raising it goes on from the last checkpoint. 0 needs `from_checkpoint`."""

    batch_size: PositiveInt = 8
    """Pictures of one update, over all ranks. In a run of minutes many small updates learn more than few large
    ones: after 6,144 emoji 20.1 dB in batches of 8, 19.5 in batches of 16."""

    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Share kept at each update of a running mean of the generator's weights, e.g. 0.999; it rises to this in the first
    updates. The mean is what is validated and saved as the tokenizer. Null: the weights themselves are."""

    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    """`auto`: bf16 on GPUs, fp32 on CPUs. `bf16`: autocast; codebook and losses stay in fp32; on CPUs only those with
    AMX or AVX512-BF16 gain by it. `fp64`: everything, to compare runs. The artifact's notes say which was used."""

    horizontal_flip: bool = False
    """Mirror every other picture; wrong where mirrored pictures are (flags, text, digits)."""

    random_crop: bool = False
    """A random window instead of the middle one, where stored pictures are larger than `image_size`."""

    validate_every: PositiveInt = 400
    """Steps between looks at held-out pictures."""

    validation_pictures: PositiveInt = 512
    """Held-out pictures looked at, at most; the first ones of the split."""

    record_every: PositiveInt = 10
    """Steps between rows of the history."""

    seed: NonNegativeInt = 0
    """Of weights, order, augmentation and codebook restarts."""

    policy: Literal["scratch", "keep", "finetune"] = Field(default="scratch", exclude=True)
    """What happens when the shards change. `scratch`: train anew. `keep`: while nothing else changes, the tokenizer of
    the version in use stays, so that new pictures cost only their own shards and tokens. `finetune`: start from the
    tokenizer of the version in use, for `finetune_steps`; all pictures get new tokens. A first run, with no version in
    use, trains from scratch. No part of the fingerprint."""

    finetune_steps: PositiveInt | None = None
    """Updates of a training that `policy: finetune` starts; the learning rate falls over them as it would over
    `optimizer.schedule_steps`, and the discriminator goes on at once. Null: a quarter of `steps`."""

    @model_validator(mode="after")
    def _something_to_make(self) -> "TokenizerConfig":
        if self.steps == 0 and self.from_checkpoint is None:
            raise ValueError("steps 0 trains nothing: raise it, or set from_checkpoint to a tokenizer that is trained")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_asked_for(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = dump(self)
        return {name: value for name, value in tree.items() if name != "finetune_steps" or value is not None}

    def alone(self) -> Self:
        """What decides a training that starts from no parent."""
        return self.model_copy(update={"finetune_steps": None})

    def going_on(self) -> Self:
        """What decides a training that may start from a parent."""
        return self.model_copy(update={"finetune_steps": self.finetune_steps or max(1, self.steps // 4)})

    def started_from(self, place: str) -> Self:
        """The training of `finetune_steps` that starts from the tokenizer at `place`."""
        assert self.finetune_steps is not None, "going_on() says how many"
        optimizer, adversary = self.optimizer, self.losses.discriminator
        if optimizer.schedule_steps is not None:
            falling = max(self.finetune_steps, optimizer.warmup_steps + 1)
            optimizer = optimizer.model_copy(update={"schedule_steps": falling})
        losses = self.losses.model_copy(update={"discriminator": adversary.model_copy(update={"start": 0})})
        changes = {"from_checkpoint": place, "steps": self.finetune_steps, "optimizer": optimizer, "losses": losses}
        return self.model_copy(update=changes)


class MapTokenizerConfig(TokenizerConfig):
    """How the tokenizer of a spatial condition is trained: maps are simpler than pictures, and nobody looks at them."""

    section: ClassVar[Part] = "cond_tokenizer"

    losses: MapLossConfig = MapLossConfig()
    """The terms of the loss; neither perceptual nor adversarial unless they are given a weight."""

    steps: NonNegativeInt = 1600
    """Updates of the generator. Raising it goes on from the last checkpoint. 0 needs `from_checkpoint`."""

    def of_labels(self, num_labels: int) -> "MapTokenizerConfig":
        """The same for maps of class numbers. Raises ConfigError where a loss is on that only pictures have."""
        if self.losses.perceptual_weight > 0 or self.losses.discriminator.weight > 0:
            raise ConfigError(
                f"cond_tokenizer.losses: perceptual_weight={self.losses.perceptual_weight:g} and "
                f"discriminator.weight={self.losses.discriminator.weight:g}, but maps of class numbers have neither "
                "loss: set both to 0"
            )
        return self.model_copy(update={"model": self.model.model_copy(update={"labels": num_labels})})
