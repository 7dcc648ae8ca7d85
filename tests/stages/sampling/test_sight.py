"""What a prior sees of kept tokens, against counting one by one."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from stages.models.priors.token_order import places_in_order
from stages.sampling.generator import Generator
from tests.stages.sampling.bundles import class_bundle


def counted(redrawn_RK: np.ndarray, order: str, side: int) -> tuple[float, int, int]:
    rows, columns = redrawn_RK.shape
    position = {place: n for n, place in enumerate(places_in_order(order, (rows, columns)))}  # type: ignore[arg-type]
    cells = list(itertools.product(range(rows), range(columns)))
    redrawn, kept = ([cell for cell in cells if redrawn_RK[cell] == want] for want in (True, False))

    def sees(one: tuple[int, int], other: tuple[int, int]) -> bool:
        top, left = (max(0, min(at - side // 2, size - side)) for at, size in zip(one, (rows, columns), strict=True))
        inside = top <= other[0] < top + side and left <= other[1] < left + side
        return inside and position[other[0] * columns + other[1]] < position[one[0] * columns + one[1]]

    table = [[sees(one, other) for one in redrawn] for other in kept]
    share = sum(map(sum, table)) / (len(redrawn) * len(kept))
    return share, sum(map(all, table)), sum(not any(row) for row in table)


@pytest.mark.parametrize(
    ("order", "shape"), [("raster", (4, 4)), ("z_curve", (4, 4)), ("raster", (7, 5))], ids=["raster", "z", "window"]
)
def test_sight_is_what_counting_gives(tmp_path: Path, order: str, shape: tuple[int, int]) -> None:
    generator = Generator.load(class_bundle(tmp_path / "b", order=order))
    rng = np.random.default_rng(0)
    for _ in range(20):
        redrawn_RK = rng.random(shape) < 0.4
        sight = generator.what_it_sees(redrawn_RK)
        share, by_all, by_none = counted(redrawn_RK, order, 4)
        assert (sight.share, sight.by_all, sight.by_none) == (pytest.approx(share), by_all, by_none)
        assert (sight.redrawn, sight.kept) == (redrawn_RK.sum(), (~redrawn_RK).sum())


def test_sight_is_told_in_a_sentence(tmp_path: Path) -> None:
    generator = Generator.load(class_bundle(tmp_path / "b"))
    redrawn_RK = np.zeros((4, 4), bool)
    redrawn_RK[1:3, 1:3] = True
    assert str(generator.what_it_sees(redrawn_RK)) == (
        "Each of 4 redrawn tokens sees what lies above it and to its left: of 12 kept tokens all see 5, some see 2, "
        "none sees 5."
    )
    assert str(generator.what_it_sees(np.ones((4, 4), bool))) == "16 tokens are redrawn and 0 kept."
