"""Selection, or rejection sampling: draw several candidates for a sample and keep those that score best.

Shapes: N samples, K candidates of each, C condition tokens, T image tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stages.sampling.noise import Draw
from stages.sampling.samples import Samples
from stages.sampling.wanted import Slot

DrawBatch = Callable[[np.ndarray, Sequence[Draw]], Samples]
"""Draws one picture for each row of conditions [N, C] and each draw."""
Score = Callable[[Samples, Sequence[int]], np.ndarray]
"""Scores [N] of samples, higher is better; the integers say which slot each was drawn for."""


class Candidate(NamedTuple):
    """One picture among those that the best are chosen from."""

    score: float
    number: int
    picture_HWC: np.ndarray
    label: int
    class_name: str
    log_likelihood: float
    tokens_T: np.ndarray


@dataclass(frozen=True)
class Selected:
    """What was kept, in the order of the slots."""

    slots: list[Slot]
    kept: list[Candidate]
    scores_NK: np.ndarray
    """Of all candidates of each, float64; NaN where nothing scores."""
    unselected: list[Candidate]
    """For each the candidate whose number is its rank, whatever its score: pictures as they come."""

    @property
    def samples(self) -> Samples:
        """The kept ones as arrays."""
        return Samples(
            pictures_NHWC=np.stack([it.picture_HWC for it in self.kept]),
            draws=[Draw(slot.seed, slot.noise_id, it.number) for slot, it in zip(self.slots, self.kept, strict=True)],
            labels=[it.label for it in self.kept],
            classes=[it.class_name for it in self.kept],
            log_likelihood_N=np.array([it.log_likelihood for it in self.kept]),
            tokens_NT=np.stack([it.tokens_T for it in self.kept]),
        )


def select(
    draw: DrawBatch,
    slots: Sequence[Slot],
    conditions_NC: np.ndarray,
    *,
    candidates: int = 1,
    score: Score | None = None,
    batch_size: int = 64,
) -> Selected:
    """Draw `candidates` pictures for each group of slots, and give each slot the one of its rank; ties to the earlier.

    Slots of a group (see `Slot`) share noise and condition. At most `batch_size` pictures beside the kept ones are in
    memory. Without a `score` candidate 0 is kept.
    """
    first_of = {slot.group: place for place, slot in reversed(list(enumerate(slots)))}
    room = dict.fromkeys(first_of, 1)
    for slot in slots:
        room[slot.group] = max(room[slot.group], slot.rank + 1)
    shelf: dict[int, list[Candidate]] = {group: [] for group in first_of}
    unselected: dict[tuple[int, int], Candidate] = {}
    scores = {group: np.full(candidates, np.nan) for group in first_of}
    rows = [(group, number) for group in sorted(first_of) for number in range(candidates)]
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        places = [first_of[group] for group, _ in batch]
        drawn = draw(conditions_NC[places], [_draw(slots[first_of[group]], number) for group, number in batch])
        scores_B = score(drawn, places) if score else np.zeros(len(batch))
        for (group, number), candidate in zip(batch, _candidates(drawn, batch, scores_B), strict=True):
            if score:
                scores[group][number] = candidate.score
            if number < room[group]:
                unselected[group, number] = candidate
            best = sorted([*shelf[group], candidate], key=lambda it: (-it.score, it.number))
            shelf[group] = best[: room[group]]
    return Selected(
        slots=list(slots),
        kept=[shelf[slot.group][slot.rank] for slot in slots],
        scores_NK=np.stack([scores[slot.group] for slot in slots]),
        unselected=[unselected[slot.group, slot.rank] for slot in slots],
    )


def _draw(slot: Slot, candidate: int) -> Draw:
    return Draw(slot.seed, slot.noise_id, candidate)


def _candidates(drawn: Samples, batch: Sequence[tuple[int, int]], scores_B: np.ndarray) -> Iterator[Candidate]:
    for row, (_, number) in enumerate(batch):
        # Copies: a slice would keep its whole batch in memory.
        yield Candidate(
            float(scores_B[row]),
            number,
            drawn.pictures_NHWC[row].copy(),
            drawn.labels[row],
            drawn.classes[row],
            float(drawn.log_likelihood_N[row]),
            drawn.tokens_NT[row].copy(),
        )
