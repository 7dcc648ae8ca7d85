"""Figures have names for people, also those that nobody thought of."""

import pytest

from stages.metrics.report.tables import distances_by_class, full_name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kid_samples", "KID of samples"),
        ("frechet_floor", "Fr\u00e9chet distance of other real pictures"),
        ("bits_per_token_held_out", "Bits per token, held-out"),
        ("codebook_used_corpus", "Codebook in use, whole corpus"),
        ("psnr", "PSNR"),
        ("obedience_low_resolution_possible", "Obedience, low resolution"),
        ("obedience_weather", "Obedience, weather"),
        ("gfid_train", "gFID train"),
        ("brightness_of_samples", "Brightness of samples"),
    ],
)
def test_a_figure_says_what_it_is_of(name: str, words: str) -> None:
    assert full_name(name, {}) == words


def test_a_figure_that_brings_its_title_has_it() -> None:
    assert full_name("gfid_train", {"title": "gFID (train)"}) == "gFID (train)"


def test_distances_of_classes_are_the_standard_ones_where_there_are_any() -> None:
    standard, packaged = {"gkid_val": {"value": 0.5}}, {"gkid_lite0_val": {"value": 0.1}}
    found = {"cats": {**packaged, **standard}, "dogs": packaged, "few": {}}
    assert distances_by_class(found) == {"cats": 0.5, "dogs": 0.1}
