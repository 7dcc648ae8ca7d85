"""Configuration of the stage sample: what is drawn, and how. Free of torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config import StrictModel
from stages.sampling.guidance import Schedule
from stages.sampling.selection_config import SelectionConfig

NOT_IN_RECIPES = {"num_samples", "samples_per_unit", "classes", "captions", "samples_per_condition", "requests"}
"""Keys that a unit's own ids, classes and conditions stand for."""
RECENT_KEYS = {"select", "precision", "guidance_schedule"}
"""Keys that recipes have only where they are set: units from before there were these stay of use."""


class SampleConfig(StrictModel):
    """What is drawn, and how."""

    num_samples: int = Field(default=256, ge=1)
    """Pictures to draw. Raising it draws only the new ones."""
    classes: tuple[str, ...] | None = None
    """Names of the classes to draw, in turn, where the prior knows nothing else. Default: all that it knows."""
    captions: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Texts to draw, in turn, where the prior knows captions; its other conditions are not given then. Default: a
    prior that knows more than classes draws from the conditions of held-out pictures."""
    samples_per_condition: int = Field(default=4, ge=1)
    """Samples in a row of each caption, or of each held-out picture's conditions. For distances between samples and
    real pictures 1 is best: more of them are different."""
    requests: str | None = None
    """A .csv, .jsonl or .parquet file that says what to draw, in place of num_samples, classes and captions. Columns:
    `id`, and any of `label` (class), `caption`, `condition_key` (a held-out picture's conditions), `seed`, `size`
    (96x128: height and width in pixels) and `count`. New rows draw only the new pictures."""
    select: SelectionConfig | None = None
    """Draw several candidates for each sample and keep the best: `kind` likelihood, classifier or two_tower. Default:
    pictures as they come."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Together with a sample's id it decides all of the sample's noise."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides the logits: below 1 the likelier codes gain."""
    top_k: int | None = Field(default=None, ge=1)
    """Draw from the k likeliest codes alone. Default: from all."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Draw from the likeliest codes that together exceed this probability. Default: from all."""
    guidance: float = Field(default=1.0, ge=0)
    """Classifier-free guidance: above 1 the condition shows more and variety shrinks; 1 is none; 0 ignores it."""
    guidance_schedule: Schedule = "constant"
    """`linear` and `cosine` let guidance grow from 1 while a picture is drawn, `interval` leaves the first quarter
    unguided: more variety at the same obedience of details."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = "fp32"
    """Arithmetic of the prior. bf16 is faster on GPUs and changes a few tokens in a thousand; `auto` is bf16 on GPUs
    and fp32 on CPUs. fp16 is for CPUs of the x86 kind, where it means matrices in 16 bits and sums in fp32: up to twice
    as fast for small batches. fp64 gives the same tokens whatever batch_size and threads are."""
    batch_size: int = Field(default=64, ge=1)
    """Pictures that are drawn at once; a smaller last batch is padded to it. Changes last bits."""
    samples_per_unit: int = Field(default=64, ge=1)
    """Pictures of a unit: what a crash can cost, and what workers share out. A multiple of batch_size pads nothing."""
    threads: int = Field(default=1, ge=1)
    """Torch threads of a worker on a CPU; more workers use more cores as well, and better. Changes last bits."""

    @field_validator("classes")
    @classmethod
    def _classes_are_named_once(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if classes is not None and (not classes or len(set(classes)) != len(classes)):
            raise ValueError("name each class once; leave the key out for all classes")
        return classes

    @model_validator(mode="after")
    def _keys_fit_each_other(self) -> SampleConfig:
        if self.requests is not None and (self.classes is not None or self.captions is not None):
            raise ValueError("requests says what is drawn: leave classes and captions out, or requests")
        if self.requests is None and self.samples_per_unit % self.keep:
            raise ValueError(
                f"samples_per_unit {self.samples_per_unit} is not a multiple of select.keep {self.keep}, and samples "
                "that are chosen from the same candidates stay together: set samples_per_unit to "
                f"{self.samples_per_unit + -self.samples_per_unit % self.keep}"
            )
        return self

    @property
    def keep(self) -> int:
        """Samples chosen from the same candidates."""
        return self.select.keep if self.select else 1

    def drawing(self) -> dict[str, Any]:
        """What decides pictures beside their ids and conditions, for recipes of units."""
        drawing = self.model_dump(mode="json", exclude=NOT_IN_RECIPES | RECENT_KEYS)
        if self.select is not None:
            drawing["select"] = self.select.model_dump(mode="json", exclude={"path"})
        changed = {key: getattr(self, key) for key in RECENT_KEYS - {"select"}}
        defaults = type(self)()
        return drawing | {key: value for key, value in changed.items() if value != getattr(defaults, key)}
