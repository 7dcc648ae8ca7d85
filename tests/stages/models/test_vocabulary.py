"""Token ranges of the prior's table."""

import pytest
import torch
from pydantic import ValidationError

from stages.models.vocabulary import Segment, TokenCorpus, TokenSpace, Vocabulary

SEVERAL = Vocabulary(
    5,
    (
        Segment(kind="class", length=1, size=3),
        Segment(kind="caption", length=2, size=10),
        Segment(kind="edges", length=4, size=6, grid=(2, 2), tokenizer="9c"),
    ),
)


def test_codes_classes_and_null_have_ranges_of_their_own() -> None:
    vocabulary = Vocabulary.by_class(5, 3)
    classes = vocabulary.condition(torch.arange(3)).flatten().tolist()
    assert classes == [5, 6, 7]
    assert vocabulary.null_tokens == (8,)
    assert vocabulary.size == 9


def test_unlabelled_pictures_get_the_null_class() -> None:
    condition_BC = Vocabulary.by_class(5, 3).condition(torch.tensor([2, -1]))
    assert condition_BC.tolist() == [[7], [8]]


def test_without_classes_every_condition_is_null() -> None:
    assert Vocabulary.by_class(5, 0).condition(torch.tensor([0, -1, 0])).tolist() == [[5], [5], [5]]


def test_dropped_rows_become_null_and_others_stay() -> None:
    vocabulary = Vocabulary.by_class(5, 3)
    dropped = vocabulary.drop(torch.tensor([[5], [6]]), torch.tensor([[True], [False]]))
    assert dropped.tolist() == [[8], [6]]


def test_a_corpus_knows_its_token_space() -> None:
    corpus = TokenCorpus(
        tokenizer="d", codebook_size=5, grid=(2, 3), classes=("a",), image_size=8, channels=3, num_train=7, num_val=1
    )
    assert corpus.space == TokenSpace(
        tokenizer="d", codebook_size=5, grid=(2, 3), classes=("a",), image_size=8, channels=3
    )
    assert corpus.num_tokens == 6
    assert corpus.vocabulary == Vocabulary.by_class(5, 1)


def test_every_segment_has_a_range_and_a_null_of_its_own() -> None:
    assert SEVERAL.offsets == (5, 9, 20)
    assert SEVERAL.null_tokens == (8, 19, 26)
    assert (SEVERAL.size, SEVERAL.condition_length) == (27, 7)


def test_segments_stand_one_after_another_and_give_their_values_back() -> None:
    classes, captions = torch.tensor([2, -1]), torch.tensor([[0, 9], [3, -1]])
    edges = torch.tensor([[0, 1, 2, 5], [-1, -1, -1, -1]])
    condition_BC = SEVERAL.condition(classes, captions, edges)
    assert condition_BC.tolist() == [[7, 9, 18, 20, 21, 22, 25], [8, 12, 19, 26, 26, 26, 26]]
    assert SEVERAL.values(condition_BC, "class")[:, 0].tolist() == [2, -1]
    assert torch.equal(SEVERAL.values(condition_BC, "caption"), captions)
    assert torch.equal(SEVERAL.values(condition_BC, "edges"), edges)


def test_a_dropped_segment_becomes_null_as_a_whole() -> None:
    condition_BC = torch.tensor([[7, 9, 18, 20, 21, 22, 25]] * 2)
    dropped = SEVERAL.drop(condition_BC, torch.tensor([[False, True, False], [True, False, True]]))
    assert dropped.tolist() == [[7, 19, 19, 20, 21, 22, 25], [8, 9, 18, 26, 26, 26, 26]]
    assert SEVERAL.null_condition(condition_BC).tolist() == [[8, 19, 19, 26, 26, 26, 26]] * 2


def test_a_description_older_than_conditions_has_the_class() -> None:
    space = TokenSpace(tokenizer="d", codebook_size=5, grid=(1, 1), classes=("a", "b"), image_size=8, channels=3)  # type: ignore[call-arg]
    assert space.condition == (Segment(kind="class", length=1, size=2),)
    assert TokenSpace.model_validate(space.model_dump(mode="json")) == space


def test_conditions_that_say_nothing_are_no_kinds() -> None:
    fields = {"tokenizer": "d", "codebook_size": 5, "grid": (1, 1), "classes": (), "image_size": 8, "channels": 3}
    assert TokenSpace.model_validate(fields).kinds == ()
    assert TokenSpace.model_validate({**fields, "condition": SEVERAL.segments}).kinds == ("class", "caption", "edges")


def test_a_grid_that_does_not_hold_its_tokens_is_refused() -> None:
    with pytest.raises(ValidationError, match="a grid of 2x3 does not hold 4 tokens"):
        Segment(kind="edges", length=4, size=6, grid=(2, 3))
