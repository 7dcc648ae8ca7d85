"""Captions as byte pairs: learnt the same way each time, nothing unknown, padded and cut."""

import numpy as np
import pytest

from stages.data.captions import Captions, learn_captions

CORPUS = ["grinning face", "grinning face with big eyes", "Flag: Norway", "café ☕"] * 5


@pytest.fixture(scope="module")
def captions() -> Captions:
    return Captions(learn_captions(CORPUS, vocabulary_size=290))


def test_the_same_captions_in_any_order_give_the_same_tokens() -> None:
    text = learn_captions(CORPUS, vocabulary_size=290)
    assert text == learn_captions(CORPUS[::-1], vocabulary_size=290)
    assert text != learn_captions(CORPUS[:2], vocabulary_size=290)


def test_what_goes_in_comes_back_in_lower_case_whatever_it_is(captions: Captions) -> None:
    for text in ("grinning face", "Flag: Norway", "никогда не видели", "café ☕"):
        assert captions.text(captions.values([text], 64)[0]) == text.lower()


def test_frequent_words_take_fewer_tokens_than_letters(captions: Captions) -> None:
    assert captions.lengths(["grinning face"])[0] < len("grinning face") / 2
    assert len(captions) == 290


def test_short_captions_are_padded_long_ones_cut_and_none_is_unknown(captions: Captions) -> None:
    values = captions.values(["flag", "grinning face with big eyes", ""], 5)
    length = captions.lengths(["flag"])[0]
    assert (values[0, :length] > 0).all()
    assert (values[0, length:] == 0).all()
    assert np.array_equal(values[1], captions.values(["grinning face with big eyes"], 64)[0, :5])
    assert values[2].tolist() == [-1] * 5
    assert values.max() < len(captions)
