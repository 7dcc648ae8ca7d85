"""Which pictures a unit is to draw: the id, the noise and the condition of each.

Shapes: N samples, C condition tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pipeline.storage import canonical_json

if TYPE_CHECKING:
    from stages.sampling.given import Given
    from stages.sampling.requests import Asked


class Slot(NamedTuple):
    """One sample: its name, its noise, and its place among the candidates that are kept of this noise."""

    sample_id: int
    key: str
    seed: int
    noise_id: int
    """The `sample_id` of its candidates' draws."""
    rank: int = 0
    """0 is the best of the candidates, 1 the second best."""
    request: str = ""
    """Id of the request that it answers."""

    @property
    def group(self) -> int:
        """The id of the best of the candidates that this one is chosen from."""
        return self.sample_id - self.rank


@dataclass(frozen=True)
class Wanted:
    """The samples of a unit."""

    slots: list[Slot]
    labels: list[int]
    """Of each sample, where `given` is None: its class, -1 for none."""
    given: Given | None = None
    """The condition of each sample, where it is more than a class."""
    size: tuple[int, int] | None = None
    """Height and width in pixels; None for the prior's own."""

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def digest(self) -> str:
        """Changes when a slot, a condition or the size does."""
        given = self.given.digest if self.given else None
        content = canonical_json([[list(slot) for slot in self.slots], self.labels, given, self.size])
        return hashlib.sha256(content.encode()).hexdigest()


def plain_slots(ids: Sequence[int], seed: int, keep: int) -> list[Slot]:
    """Samples by number: `keep` ids in a row are chosen from the candidates of one noise."""
    return [Slot(it, f"s{it:08d}", seed, it - it % keep, it % keep) for it in ids]


def requested_slots(asked: Sequence[Asked], seed: int, keep: int) -> list[Slot]:
    """The samples that requests ask for, in their order; `seed` is for those that name none."""
    slots: list[Slot] = []
    for _, request in asked:
        # Below 2**62, so that copies stay below 2**63.
        own = int.from_bytes(hashlib.sha256(request.id.encode()).digest()[:8], "little") >> 2
        first = 0 if request.seed is not None else own
        for copy in range(request.count):
            slots.append(
                Slot(
                    sample_id=len(slots),
                    key=f"{request.id}-{copy}",
                    seed=seed if request.seed is None else request.seed,
                    noise_id=first + copy - copy % keep,
                    rank=copy % keep,
                    request=request.id,
                )
            )
    return slots
