"""Selection: which candidates are kept, whatever the batches, and what they are drawn with."""

from collections.abc import Sequence

import numpy as np
import pytest

from stages.sampling.generator import Samples
from stages.sampling.noise import Draw
from stages.sampling.selection import select
from stages.sampling.selection_config import ClassifierSelection, LikelihoodSelection
from stages.sampling.wanted import Slot, plain_slots


def value_of(draw: Draw, condition: int) -> int:
    """A made-up picture's only number."""
    return int(np.random.default_rng([*draw, condition]).integers(0, 200))


def draw_batch(conditions_NC: np.ndarray, draws: Sequence[Draw]) -> Samples:
    values = np.array([value_of(draw, int(row[0])) for draw, row in zip(draws, conditions_NC, strict=True)])
    return Samples(
        pictures_NHWC=np.broadcast_to(values[:, None, None, None], (len(values), 2, 2, 3)).astype(np.uint8),
        draws=list(draws),
        labels=[int(row[0]) for row in conditions_NC],
        classes=["" for _ in draws],
        log_likelihood_N=-values.astype(np.float64),
        tokens_NT=values[:, None].repeat(4, 1),
    )


def brightness(samples: Samples, places: Sequence[int]) -> np.ndarray:
    return samples.pictures_NHWC.mean((1, 2, 3))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("keep", [1, 3])
def test_the_best_of_each_group_are_kept_in_their_order(keep: int, batch_size: int) -> None:
    slots = plain_slots(range(6, 12), seed=4, keep=keep)
    conditions_NC = np.array([[slot.group % 5] for slot in slots])
    found = select(draw_batch, slots, conditions_NC, candidates=7, score=brightness, batch_size=batch_size)
    for slot, condition, kept, scores_K in zip(slots, conditions_NC[:, 0], found.kept, found.scores_NK, strict=True):
        values = [value_of(Draw(4, slot.group, number), condition) for number in range(7)]
        assert scores_K.tolist() == values
        best = sorted(range(7), key=lambda number: (-values[number], number))[slot.rank]
        assert (kept.number, kept.score) == (best, values[best])
        assert kept.picture_HWC[0, 0, 0] == kept.tokens_T[0] == values[best]
    assert found.samples.draws == [Draw(4, slot.group, it.number) for slot, it in zip(slots, found.kept, strict=True)]
    unselected = [value_of(Draw(4, slot.group, slot.rank), slot.group % 5) for slot in slots]
    assert [it.score for it in found.unselected] == unselected


def test_without_a_score_the_picture_as_it_comes_is_kept() -> None:
    slots = plain_slots(range(4), seed=1, keep=1)
    found = select(draw_batch, slots, np.zeros((4, 1), int), batch_size=3)
    assert found.samples.draws == [Draw(1, it) for it in range(4)]
    assert found.samples.tokens_NT[:, 0].tolist() == [value_of(Draw(1, it), 0) for it in range(4)]
    assert np.isnan(found.scores_NK).all()


def test_equal_scores_keep_the_earlier_candidate() -> None:
    def score(samples: Samples, places: Sequence[int]) -> np.ndarray:
        return np.array([0.5 if draw.candidate in (2, 4) else 0.0 for draw in samples.draws])

    found = select(draw_batch, plain_slots(range(2), 0, 2), np.zeros((2, 1), int), candidates=6, score=score)
    assert [it.number for it in found.kept] == [2, 4]


def test_a_part_of_a_group_keeps_the_same_pictures_as_the_whole() -> None:
    slots = plain_slots(range(4), 0, 4)
    whole = select(draw_batch, slots, np.zeros((4, 1), int), candidates=9, score=brightness)
    part = select(draw_batch, slots[2:], np.zeros((2, 1), int), candidates=9, score=brightness)
    assert [it.number for it in part.kept] == [it.number for it in whole.kept][2:]


def test_the_score_is_told_which_slot_a_candidate_is_for() -> None:
    asked: list[int] = []

    def score(samples: Samples, places: Sequence[int]) -> np.ndarray:
        asked.extend(places)
        return np.zeros(len(places))

    slots = [Slot(10, "a", 0, 3), Slot(11, "b", 5, 3), Slot(12, "c", 5, 4)]
    select(draw_batch, slots, np.array([[0], [1], [2]]), candidates=2, score=score, batch_size=4)
    assert asked == [0, 0, 1, 1, 2, 2]


def test_keeping_more_than_are_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="keep 5 of 4 candidates: raise candidates, or lower keep"):
        LikelihoodSelection(candidates=4, keep=5)
    assert ClassifierSelection(path="x").candidates == 16
