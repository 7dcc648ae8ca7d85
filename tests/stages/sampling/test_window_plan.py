"""The plan of a large picture: places of windows, levels, memory."""

import numpy as np
import pytest

from pipeline.errors import ConfigError
from stages.models.vocabulary import Segment, Vocabulary
from stages.sampling.window_plan import Target, WindowPlan, plan_windows, window_start, window_warning


def published_local(place: int, size: int) -> int:
    """taming-transformers' place of the target in a window of 16."""
    if place <= 8:
        return place
    return 16 - (size - place) if size - place < 8 else 8


@pytest.mark.parametrize("size", [16, 17, 23, 24, 42, 64])
def test_windows_of_16_are_the_published_ones(size: int) -> None:
    assert [place - window_start(place, size, 16) for place in range(size)] == [
        published_local(place, size) for place in range(size)
    ]


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("more", [0, 1, 2, 9])
def test_every_window_lies_in_the_picture_and_holds_its_target(side: int, more: int) -> None:
    size = side + more
    starts = [window_start(place, size, side) for place in range(size)]
    assert all(0 <= start <= size - side and 0 <= place - start < side for place, start in enumerate(starts))
    assert starts == sorted(starts) and set(starts) == set(range(size - side + 1))


@pytest.mark.parametrize(("size", "steps"), [((64, 64), 1072), ((42, 64), 720), ((24, 24), 392), ((16, 16), 256)])
def test_there_are_as_many_levels_as_the_longest_chain_has_tokens(size: tuple[int, int], steps: int) -> None:
    plan = plan_windows(size, (16, 16))
    assert len(plan.levels) == steps
    assert sum(map(len, plan.levels)) == size[0] * size[1]


def targets_of(plan: WindowPlan) -> list[tuple[int, Target]]:
    return [(number, target) for number, level in enumerate(plan.levels) for target in level]


@pytest.mark.parametrize(("size", "grid"), [((7, 9), (4, 4)), ((6, 6), (3, 5)), ((5, 8), (5, 3)), ((4, 4), (1, 2))])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_all_that_a_target_reads_is_drawn_in_earlier_levels_and_it_could_not_come_earlier(
    size: tuple[int, int], grid: tuple[int, int], share: float
) -> None:
    known_HW = np.random.default_rng(0).random(size) < share
    targets = targets_of(plan_windows(size, grid, known_HW=known_HW))
    assert {target.place for _, target in targets} == {(int(i), int(j)) for i, j in np.argwhere(~known_HW)}
    level_of = {target.place: number for number, target in targets}
    for number, target in targets:
        top, left = target.window
        window = [(top + n // grid[1], left + n % grid[1]) for n in range(grid[0] * grid[1])]
        assert window[target.position] == target.place
        needed = [level_of[place] for place in window[: target.position] if place in level_of]
        assert number == 1 + max(needed, default=-1)


@pytest.mark.parametrize("memory", [None, 0, 60, 200])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_every_token_of_a_window_is_read_once_or_forgotten_and_never_too_many_remembered(
    memory: int | None, share: float
) -> None:
    known_HW = np.random.default_rng(1).random((9, 11)) < share
    plan = plan_windows((9, 11), (4, 4), known_HW=known_HW, condition_length=5, memory=memory)
    held: dict[tuple[int, int], tuple[int, int]] = {}
    most = 0
    for level in plan.levels:
        done = []
        for target in level:
            if target.first:
                assert target.remembered == 0 and target.window not in held
            else:
                assert held[target.window][0] == target.remembered
            if not target.last:
                room = 5 + target.room if target.first else held[target.window][1]
                assert 5 + target.position <= room
                held[target.window] = (target.position, room)
            elif not target.first:
                done.append(target.window)
        most = max(most, sum(room for _, room in held.values()))
        for window in done:
            del held[window]
    assert not held
    assert most == plan.most_remembered
    assert memory is None or most <= memory


def test_memory_saves_reading_and_none_is_needed_without_edges() -> None:
    rich, poor = (plan_windows((9, 11), (4, 4), memory=memory) for memory in (None, 0))
    assert poor.most_remembered == 0 < rich.most_remembered
    assert rich.tokens_read < 0.7 * poor.tokens_read
    assert poor.tokens_read == sum(target.position for _, target in targets_of(poor))


def test_a_picture_smaller_than_the_grid_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"8x20 tokens is smaller than the prior's 16x16: draw at least that many"):
        plan_windows((8, 20), (16, 16))


CLASS = Segment(kind="class", length=1, size=3)
EDGES = Segment(kind="edges", length=4, size=5, grid=(2, 2))
BOXES = Segment(kind="boxes", length=6, size=5)


@pytest.mark.parametrize(
    ("segments", "words"),
    [
        ((CLASS,), "the prior is told class, the same in every window"),
        ((Segment(kind="none", length=1, size=0),), "told nothing, the same in every window"),
        ((CLASS, EDGES), None),
        ((EDGES.model_copy(update={"kind": "coordinates"}),), None),
        ((EDGES, BOXES), "every window is told the same"),
    ],
)
def test_a_condition_that_does_not_say_what_lies_where_is_warned_of(
    segments: tuple[Segment, ...], words: str | None
) -> None:
    warning = window_warning(Vocabulary(7, segments))
    assert warning is None if words is None else words in str(warning)
