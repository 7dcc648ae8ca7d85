"""Which picture goes into which shard: growth, removal, the validation split, classes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipeline.errors import DataError
from stages.data.assignment import Assignment, assign, removed
from stages.data.pictures import Picture


def picture(n: int, label: str = "a", group: str | None = None) -> Picture:
    return Picture(f"{label}/{n}.png", 100, "1", label, "", group or f"{label}/{n}.png")


def cut(
    pictures: list[Picture], previous: Assignment | None = None, *, fraction: float = 0.1, seed: int = 0
) -> Assignment:
    return assign(pictures, previous, seed=seed, validation_fraction=fraction, samples_per_shard=10)


def made(assignment: Assignment) -> Assignment:
    return Assignment.from_json(json.loads(json.dumps(assignment.to_json(finished=True))))


FIRST = [picture(n) for n in range(100)]


def test_every_picture_is_in_one_shard_of_at_most_the_wanted_size() -> None:
    assignment = cut(FIRST)
    assert sorted(p.path for shard in assignment.shards for p in shard.pictures) == sorted(p.path for p in FIRST)
    assert max(len(shard.pictures) for shard in assignment.shards) == 10
    assert [s.name for s in assignment.shards if s.split == "train"][:2] == ["train-000000", "train-000001"]
    assert assignment == cut(FIRST[::-1]), "the order of the listing does not matter"


def test_new_pictures_make_new_shards_and_leave_the_old_ones() -> None:
    before = made(cut(FIRST))
    after = cut([*FIRST, *(picture(n) for n in range(100, 125))], before)
    old = {shard.name: shard for shard in before.shards}
    assert {shard.name: shard for shard in after.shards if shard.name in old} == old
    added = [p.path for shard in after.shards if shard.name not in old for p in shard.pictures]
    assert sorted(added) == sorted(f"a/{n}.png" for n in range(100, 125))
    assert cut([*FIRST, *(picture(n) for n in range(100, 125))], made(after)) == made(after)


def test_a_grown_source_is_cut_otherwise_than_one_taken_at_once_but_split_alike() -> None:
    everything = [*FIRST, *(picture(n) for n in range(100, 125))]
    grown, at_once = cut(everything, made(cut(FIRST))), cut(everything)
    assert {s.pictures for s in grown.shards} != {s.pictures for s in at_once.shards}

    def validation(assignment: Assignment) -> set[str]:
        return {p.path for s in assignment.shards if s.split == "val" for p in s.pictures}

    assert validation(grown) == validation(at_once)


def test_removed_pictures_stay_in_finished_shards() -> None:
    before = made(cut(FIRST))
    after = cut(FIRST[1:], before)
    assert after == before
    assert [p.path for s in after.shards for p in removed(s, set(FIRST[1:]))] == ["a/0.png"]


def test_a_shard_without_any_picture_left_goes() -> None:
    before = made(cut(FIRST))
    gone = before.shards[0]
    after = cut([p for p in FIRST if p not in gone.pictures], before)
    assert [s.name for s in after.shards] == [s.name for s in before.shards[1:]]


def test_a_shard_never_made_is_cut_anew_when_a_picture_of_it_is_gone() -> None:
    planned = Assignment.from_json(cut(FIRST).to_json(finished=False))
    gone = planned.shards[0].pictures[0]
    after = cut([p for p in FIRST if p != gone], planned)
    assert gone not in {p for s in after.shards for p in s.pictures}
    assert after.shards[0].pictures == planned.shards[0].pictures[1:]
    assert after.shards[1:] == planned.shards[1:]


def test_a_changed_file_is_a_removed_and_a_new_picture() -> None:
    before = made(cut(FIRST))
    changed = replace(FIRST[5], stamp="2")
    live = [changed if p == FIRST[5] else p for p in FIRST]
    after = cut(live, before)
    assert after.shards[-1].pictures == (changed,) or changed in {p for s in after.shards for p in s.pictures}
    assert len(after.shards) == len(before.shards) + 1
    assert [p for s in after.shards for p in removed(s, set(live))] == [FIRST[5]]
    side = {s.split for s in after.shards for p in s.pictures if p.path == changed.path}
    assert len(side) == 1, "it stays on its side of the split"


def test_groups_are_never_split_not_even_by_growth() -> None:
    pictures = [picture(n, group=f"g{n // 5}") for n in range(100)]
    first, rest = pictures[::2], pictures[1::2]
    grown = cut([*first, *rest], made(cut(first, fraction=0.3)), fraction=0.3)
    sides: dict[str, set[str]] = {}
    for shard in grown.shards:
        for p in shard.pictures:
            sides.setdefault(p.group, set()).add(shard.split)
    assert len(sides) == 20
    assert all(len(side) == 1 for side in sides.values())
    assert {"train", "val"} == set.union(*sides.values())


def test_the_split_follows_seed_and_fraction() -> None:
    pictures = [picture(n) for n in range(4000)]

    def validation(seed: int) -> set[str]:
        shards = cut(pictures, fraction=0.25, seed=seed).shards
        return {p.path for s in shards if s.split == "val" for p in s.pictures}

    assert 900 < len(validation(0)) < 1100
    assert validation(0) != validation(1)
    assert not [s for s in cut(FIRST, fraction=0.0).shards if s.split == "val"]


def test_a_small_source_still_has_something_to_validate_on() -> None:
    shards = cut([picture(n) for n in range(3)], fraction=0.01).shards
    assert [(s.split, len(s.pictures)) for s in shards] == [("train", 2), ("val", 1)]


def test_nothing_left_to_train_on_is_an_error() -> None:
    with pytest.raises(DataError, match=r"all 1 groups .* lower shard.validation_fraction=0.999999"):
        cut([picture(1)], fraction=0.999999)


def test_classes_keep_their_numbers_when_new_ones_come() -> None:
    before = cut([picture(n, label) for n, label in enumerate(["10", "9", "cat", "bee"])])
    assert before.classes == ("9", "10", "bee", "cat")
    after = cut([picture(n, label) for n, label in enumerate(["10", "9", "cat", "bee", "ant", "1"])], made(before))
    assert after.classes == ("9", "10", "bee", "cat", "1", "ant")
