"""Configuration of the prior's training. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.config import StrictModel
from stages.models.pretrained import Part, absolute
from stages.models.priors.configs import GPTConfig, PriorModelConfig


class PriorConfig(StrictModel):
    """How the prior learns the tokens."""

    section: ClassVar[Part] = "prior"
    """Which section of the experiment this is."""

    model: PriorModelConfig = GPTConfig()
    """The network. What it draws at random in training follows from `seed` and a picture's place in the order."""
    from_checkpoint: Annotated[str, AfterValidator(absolute)] | None = Field(default=None, exclude=True)
    """Start from trained weights: the folder of an earlier run, of a published model or of an import, or a .ckpt of
    taming-transformers. `model` must be the checkpoint's. With `steps: 0` the prior is taken as it is. In the
    fingerprint the files' content counts, not where they lie."""
    steps: int = Field(default=600, ge=0)
    """Updates, unless `patience` ends training earlier. Raising it goes on from the last checkpoint. 0 needs
    `from_checkpoint`."""
    batch_size: int = Field(default=32, ge=1)
    """Pictures of one update, over all ranks."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """AdamW's peak learning rate."""
    min_learning_rate: float = Field(default=1e-4, ge=0)
    """Where the cosine ends."""
    warmup_steps: int = Field(default=50, ge=0)
    """Updates over which the learning rate rises linearly."""
    schedule_steps: int | None = Field(default=600, ge=1)
    """Update at which the learning rate has fallen along a cosine to `min_learning_rate`, where it stays; null: it
    stays at its peak. Not derived from `steps`, so that raising `steps` goes on with the same run."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decay of the weights of matrix products; embeddings, norms and biases do not decay."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Share kept at each update of a running mean of the weights, e.g. 0.999; it rises to this in the first updates.
    The mean is what is validated and saved as the prior. Null: the weights themselves are."""
    clip_gradient: float | None = Field(default=1.0, gt=0)
    """Largest norm of an update's gradient; longer ones are scaled down. Null: never."""
    validate_every: int = Field(default=50, ge=1)
    """Updates between measurements on the validation tokens."""
    record_every: int = Field(default=10, ge=1)
    """Updates between rows of the history; each averages over the updates since the row before."""
    patience: int | None = Field(default=5, ge=1)
    """Validations in a row without a new best after which training ends. Null: only `steps` ends it."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network. `auto`: bf16 on GPUs, fp32 on CPUs, of which only those with AMX or AVX512-BF16 gain
    by bf16. The artifact's notes say which was used."""
    seed: int = Field(default=0, ge=0)
    """Decides weights, order, dropout, and which conditions and tokens training hides."""
    policy: Literal["scratch", "warm"] = Field(default="scratch", exclude=True)
    """`scratch`: train anew. `warm`: start from the prior of the version in use, for `warm_steps`, where that one was
    trained on tokens of the same tokenizer and told the same things; else from scratch. A first run, with no version in
    use, trains from scratch. No part of the fingerprint."""
    warm_steps: int | None = Field(default=None, ge=1)
    """Updates of a training that `policy: warm` starts, unless `patience` ends it earlier; the learning rate rises and
    falls over them as it would over `schedule_steps`. Null: a quarter of `steps`."""

    @model_validator(mode="after")
    def _something_to_make(self) -> PriorConfig:
        if self.steps == 0 and self.from_checkpoint is None:
            raise ValueError("steps 0 trains nothing: raise it, or set from_checkpoint to a prior that is trained")
        return self

    @model_validator(mode="after")
    def _schedule_rises_then_falls(self) -> PriorConfig:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}: lower it, "
                "or set schedule_steps to null for a constant learning rate"
            )
        if self.schedule_steps is not None and self.schedule_steps <= self.warmup_steps:
            raise ValueError(
                f"schedule_steps {self.schedule_steps} ends before warmup_steps {self.warmup_steps}: "
                "raise the first or lower the second"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_asked_for(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = dump(self)
        return {name: value for name, value in tree.items() if name != "warm_steps" or value is not None}

    def alone(self) -> Self:
        """What decides a training that starts from no parent."""
        return self.model_copy(update={"warm_steps": None})

    def going_on(self) -> Self:
        """What decides a training that may start from a parent."""
        return self.model_copy(update={"warm_steps": self.warm_steps or max(1, self.steps // 4)})

    def started_from(self, place: str) -> Self:
        """The training of `warm_steps` that starts from the prior at `place`."""
        assert self.warm_steps is not None, "going_on() says how many"
        falling = max(self.warm_steps, self.warmup_steps + 1) if self.schedule_steps is not None else None
        changes = {"from_checkpoint": place, "steps": self.warm_steps, "schedule_steps": falling}
        return self.model_copy(update=changes)
