"""Maps made from pictures: what they show, that they belong to the picture's place, and what does not suit."""

import numpy as np
import pytest

from pipeline.errors import ConfigError
from stages.data.condition_config import EdgesCondition, LowResolutionCondition, SketchCondition
from stages.data.conditions import make_map, map_channels


def square(channels: int = 3) -> np.ndarray:
    picture = np.full((32, 32, channels), 240, np.uint8)
    picture[8:24, 8:24] = 30
    return picture


@pytest.mark.parametrize("channels", [1, 3])
def test_edges_run_along_the_outline_and_nowhere_else(channels: int) -> None:
    found = make_map(EdgesCondition(sigma=1.0), square(channels))
    assert (found.shape, found.dtype, set(np.unique(found))) == ((32, 32, 1), np.uint8, {0, 255})
    rows, columns = np.nonzero(found[:, :, 0])
    from_outline = abs(np.maximum(abs(rows - 15.5), abs(columns - 15.5)) - 8)
    assert len(rows) > 40
    assert from_outline.max() <= 1.5


def test_a_smoother_picture_has_fewer_edges() -> None:
    noisy = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    counts = [np.count_nonzero(make_map(EdgesCondition(sigma=sigma), noisy)) for sigma in (0.5, 1.0, 2.0)]
    assert counts[0] > counts[1] > counts[2] > 0


def test_a_sketch_is_white_with_dark_strokes_on_the_dark_side_of_edges() -> None:
    drawn = make_map(SketchCondition(), square())[:, :, 0]
    assert drawn[2, 2] == 255
    assert drawn[9, 16] < 64
    flat = make_map(SketchCondition(), np.full((16, 16, 3), 255, np.uint8))
    assert (flat == 255).all()


def test_low_resolution_keeps_flat_colour_and_the_mean_and_loses_detail() -> None:
    condition = LowResolutionCondition(factor=4)
    flat = np.full((32, 32, 3), 77, np.uint8)
    assert np.array_equal(make_map(condition, flat), flat)
    checks = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)[:, :, None].repeat(3, 2)
    assert make_map(condition, checks)[8:-8, 8:-8].std() < 2
    assert make_map(condition, square()).mean() == pytest.approx(square().mean(), abs=2)


def test_a_factor_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="factor 5 does not divide pictures of 32x32"):
        make_map(LowResolutionCondition(factor=5), square())


def test_only_low_resolution_has_the_pictures_channels() -> None:
    assert [map_channels(condition, 3) for condition in (EdgesCondition(), LowResolutionCondition())] == [1, 3]
