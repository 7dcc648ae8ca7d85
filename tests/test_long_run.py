"""The long run's verdict tells a leak from a flat line."""

import os

import pytest

from tests.long_run import Look, fit, look, warmed_up


def looks(per_look: float = 0.0, files: float = 0.0, threads: float = 0.0) -> list[Look]:
    """Sixty looks at a process that grows for the first twenty anyway."""
    return [
        Look(float(n), 500 + min(n, 20) * 10 + n * per_look, round(30 + n * files), round(8 + n * threads))
        for n in range(60)
    ]


@pytest.mark.parametrize(
    ("growth", "leaks"),
    [
        ({}, False),
        ({"per_look": 0.2}, False),
        ({"per_look": 1.0}, True),
        ({"files": 0.1}, True),
        ({"threads": 0.1}, True),
    ],
)
def test_what_grows_after_the_warm_up_is_a_leak(growth, leaks):
    assert fit("prior", "worker", looks(**growth)).leaks is leaks


def test_the_first_third_is_warm_up():
    assert warmed_up(looks())[0].at == 20


def test_a_look_at_this_process_sees_what_it_opens(tmp_path):
    before = look(os.getpid())
    with (tmp_path / "a").open("w"), (tmp_path / "b").open("w"):
        during = look(os.getpid())
    assert before is not None and during is not None
    assert during.files == before.files + 2 and during.megabytes > 10 and during.threads >= 1
    assert look(2**22 + 1) is None
