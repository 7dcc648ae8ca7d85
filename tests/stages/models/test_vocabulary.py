"""Token ranges of the prior's table."""

import torch

from stages.models.vocabulary import TokenCorpus, TokenSpace, Vocabulary


def test_codes_classes_and_null_have_ranges_of_their_own() -> None:
    vocabulary = Vocabulary(num_codes=5, num_classes=3)
    classes = vocabulary.condition(torch.arange(3)).flatten().tolist()
    assert classes == [5, 6, 7]
    assert vocabulary.null_token == 8
    assert vocabulary.size == 9


def test_unlabelled_pictures_get_the_null_class() -> None:
    condition_BC = Vocabulary(num_codes=5, num_classes=3).condition(torch.tensor([2, -1]))
    assert condition_BC.tolist() == [[7], [8]]


def test_without_classes_every_condition_is_null() -> None:
    assert Vocabulary(num_codes=5, num_classes=0).condition(torch.tensor([0, -1, 0])).tolist() == [[5], [5], [5]]


def test_dropped_rows_become_null_and_others_stay() -> None:
    vocabulary = Vocabulary(num_codes=5, num_classes=3)
    dropped = vocabulary.drop(torch.tensor([[5], [6]]), torch.tensor([True, False]))
    assert dropped.tolist() == [[8], [6]]


def test_a_corpus_knows_its_token_space() -> None:
    corpus = TokenCorpus(
        tokenizer="d", codebook_size=5, grid=(2, 3), classes=("a",), image_size=8, channels=3, num_train=7, num_val=1
    )
    assert corpus.space == TokenSpace(
        tokenizer="d", codebook_size=5, grid=(2, 3), classes=("a",), image_size=8, channels=3
    )
    assert corpus.num_tokens == 6
    assert corpus.vocabulary == Vocabulary(num_codes=5, num_classes=1)
