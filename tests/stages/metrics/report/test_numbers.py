"""Numbers are printed for people."""

import pytest

from stages.metrics.report.numbers import duration, number, percent


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.0123456, "0.0123"),
        (-0.00035, "\u22120.000350"),
        (1.1, "1.10"),
        (22.456, "22.5"),
        (117.2, "117"),
        (1629.2, "1,629"),
        (0.000002, "2.0e\u221206"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_durations_grow_from_seconds_to_hours() -> None:
    assert [duration(seconds) for seconds in (3.14, 245, 7260)] == ["3.1 s", "4 min 05 s", "2 h 01 min"]


def test_percent_keeps_a_digit_only_where_it_matters() -> None:
    assert [percent(share) for share in (0, 0.004, 0.0994, 0.25, 1)] == ["0%", "0.4%", "9.9%", "25%", "100%"]
