"""What a generator can be asked for, and how it is drawn: the keywords of `generate`, `inpaint` and the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, get_args

from pipeline.errors import ConfigError
from stages.sampling.guidance import Guidance, Schedule
from stages.sampling.pictures import PictureLike

if TYPE_CHECKING:
    from stages.sampling.filters import LogitFilter
    from stages.sampling.noise import Draw

Coordinates = tuple[int, int, int, int]
BoxLike = Sequence[str | float]


class Asked(TypedDict, total=False):
    """The keywords; `Ask` says what each means."""

    label: str | int | None
    caption: str | None
    boxes: Sequence[BoxLike] | None
    condition_picture: PictureLike | None
    condition_map: PictureLike | None
    coordinates: Coordinates | None
    seed: int
    count: int
    temperature: float
    top_k: int | None
    top_p: float | None
    guidance: float
    guidance_schedule: Schedule
    batch_size: int | None


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What to draw and how. Raises ConfigError for numbers that make no sense."""

    label: str | int | None = None
    """Name or number of the class."""
    caption: str | None = None
    """Words."""
    boxes: Sequence[BoxLike] | None = None
    """What is where: (class, left, top, right, bottom) each, edges in shares of the picture's side."""
    condition_picture: PictureLike | None = None
    """What the map is made of: edges, a sketch or a low resolution are computed from it, alpha is its opacity. For
    segmentation, depth and pose the map itself."""
    condition_map: PictureLike | None = None
    """The finished map, of any kind."""
    coordinates: Coordinates | None = None
    """(top, left, height, width) in pixels: where the picture lies in one of so many pixels. Default: it is all."""
    seed: int = 0
    """Together with a picture's number it decides all of its noise."""
    count: int = 1
    """Pictures, numbered from 0."""
    temperature: float = 1.0
    """Divides the logits: below 1 the likelier codes gain."""
    top_k: int | None = None
    """Draw from the k likeliest codes alone."""
    top_p: float | None = None
    """Draw from the likeliest codes that together exceed this probability."""
    guidance: float = 1.0
    """Classifier-free guidance: above 1 the condition shows more and variety shrinks."""
    guidance_schedule: Schedule = "constant"
    """How it grows while a picture is drawn; see `Guidance`."""
    batch_size: int | None = None
    """Pictures drawn at once; the last batch is padded. It changes last bits. Default: all, up to 64."""

    def __post_init__(self) -> None:
        for name, fits, must in (
            ("seed", 0 <= self.seed < 2**63, "not be negative"),
            ("count", self.count >= 1, "be at least 1"),
            ("temperature", 0 < self.temperature < math.inf, "be above 0"),
            ("top_k", self.top_k is None or self.top_k >= 1, "be at least 1"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "be above 0 and at most 1"),
            ("guidance", 0 <= self.guidance < math.inf, "not be negative"),
            ("guidance_schedule", self.guidance_schedule in (known := get_args(Schedule)), f"be one of {known}"),
            ("batch_size", self.batch_size is None or self.batch_size >= 1, "be at least 1"),
        ):
            if not fits:
                raise ConfigError(f"{name}={getattr(self, name)} must {must}")

    @property
    def rows(self) -> int:
        """Pictures of a batch."""
        return min(self.count, 64) if self.batch_size is None else self.batch_size

    @property
    def guided(self) -> Guidance:
        """Guidance at each token."""
        return Guidance(self.guidance, self.guidance_schedule)

    @property
    def logit_filter(self) -> LogitFilter:
        """What is done to logits."""
        from stages.sampling.filters import LogitFilter

        return LogitFilter(self.temperature, self.top_k, self.top_p)

    def draws(self, candidate: int = 0) -> list[Draw]:
        """The noise of each picture."""
        from stages.sampling.noise import Draw

        return [Draw(self.seed, number, candidate) for number in range(self.count)]

    def facts(self) -> dict[str, str | int | float]:
        """What a picture's file says of how it was drawn: what was asked, where it is not the default."""
        names = ("caption", "temperature", "top_k", "top_p", "guidance", "guidance_schedule")
        changed = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(Ask, name)}
        if self.boxes is not None:
            changed["boxes"] = str([tuple(box) for box in self.boxes])
        return changed
