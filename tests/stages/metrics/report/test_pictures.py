"""Pictures of the page: never more, and never larger, than a page can bear."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.data.shards import open_split
from stages.metrics.report.pictures import picture_uri, samples_by_class
from tests.stages.metrics.report.versions import Version, finished


@pytest.mark.parametrize(
    ("side", "shown", "kind"), [(28, 28, "png"), (64, 64, "png"), (128, 128, "webp"), (256, 192, "webp")]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_large_pictures_are_shown_smaller_and_small_ones_as_they_are(
    side: int, shown: int, kind: str, channels: int
) -> None:
    uri = picture_uri(np.full((side, side, channels), 90, np.uint8))
    head, _, data = uri.partition(",")
    assert head == f"data:image/{kind};base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (shown, shown)


def test_of_more_classes_than_have_room_evenly_spaced_ones_are_shown(tmp_path: Path) -> None:
    names = tuple(f"class {number}" for number in range(9))
    _, samples = finished(tmp_path, Version(classes=names, samples_each=3))
    shards = open_split(samples, "sample")
    every = samples_by_class(shards, names, 2)
    assert [(name, len(uris)) for name, uris in every.rows] == [(name, 2) for name in names] and every.left_out == 0
    some = samples_by_class(shards, names, 2, most=7)
    assert [name for name, _ in some.rows] == ["class 0", "class 3", "class 6"] and some.left_out == 6
    assert dict(some.rows)["class 3"] == dict(every.rows)["class 3"]
