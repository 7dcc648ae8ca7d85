"""Numbers are printed for people."""

import pytest

from stages.metrics.report.page import duration, number


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
