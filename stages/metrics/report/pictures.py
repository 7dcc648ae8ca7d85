"""The pictures of the report, each as a data URI: samples by class, reconstructions, nearest training pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.data.images import decode_image, encode_image
from stages.data.shards import ShardReader

if TYPE_CHECKING:
    from stages.data.shards import Shard

LARGEST_PNG = 64  # pixels of side; above, WebP keeps the page small
LARGEST_SHOWN = 192
"""Pixels of side; larger pictures are shown smaller, 500 of them would be too much for a page."""
MOST_SAMPLES = 400
"""On a page: of more classes than have room, some are shown."""


class Samples(NamedTuple):
    """The first samples of each class: (class, data URIs)."""

    rows: list[tuple[str, list[str]]]
    left_out: int
    """Classes without room."""


class Pair(NamedTuple):
    """Two pictures to compare, as data URIs, and what to say of them."""

    first: str
    second: str
    words: str


def data_uri(data: bytes, kind: str = "png") -> str:
    """Encoded bytes as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def picture_uri(picture_HWC: NDArray[np.uint8]) -> str:
    """A uint8 picture as a data URI, at most LARGEST_SHOWN pixels wide and high."""
    if max(picture_HWC.shape[:2]) > LARGEST_SHOWN:
        image = Image.fromarray(picture_HWC[:, :, 0] if picture_HWC.shape[2] == 1 else picture_HWC)
        image.thumbnail((LARGEST_SHOWN, LARGEST_SHOWN), Image.Resampling.LANCZOS)
        return data_uri(encode_image(image, "webp"), "webp")
    kind = "png" if max(picture_HWC.shape[:2]) <= LARGEST_PNG else "webp"
    return data_uri(encode_image(picture_HWC, kind), kind)  # type: ignore[arg-type]


def samples_by_class(
    shards: Sequence[Shard], classes: Sequence[str], per_class: int, *, most: int = MOST_SAMPLES
) -> Samples:
    """The first samples of each class, of evenly spaced classes where all would be more than `most` pictures.

    Without classes, one nameless row three times as long.
    """
    labels = _spaced(len(classes), max(most // per_class, 1))
    rows: dict[int, list[str]] = {label: [] for label in labels} or {-1: []}
    wanted = per_class if classes else 3 * per_class
    for shard in shards:
        reader = ShardReader(shard, few=True)
        for index, row in enumerate(reader.table):
            uris = rows.get(row["label"] if classes else -1)
            if uris is not None and len(uris) < wanted:
                uris.append(_stored_uri(reader, index))
    named = [(classes[label] if classes else "", uris) for label, uris in rows.items() if uris]
    return Samples(named, len(classes) - len(labels))


def _spaced(available: int, wanted: int) -> list[int]:
    """As many numbers below `available` as wanted, or all, evenly spaced."""
    number = min(available, wanted)
    return [place * available // number for place in range(number)]


def reconstruction_pairs(units: Sequence[Mapping[str, NDArray[Any]]], count: int) -> list[Pair]:
    """Originals and their reconstructions, evenly spaced over those that were kept."""
    kept = [(unit["originals"][i], unit["reconstructions"][i]) for unit in units for i in range(len(unit["originals"]))]
    chosen = np.unique(np.linspace(0, len(kept) - 1, min(count, len(kept))).round().astype(int))
    return [Pair(picture_uri(kept[i][0]), picture_uri(kept[i][1]), "") for i in chosen]


def nearest_pairs(
    samples: Sequence[Shard],
    train: Sequence[Shard],
    neighbour_N: NDArray[np.int64],
    distance_N: NDArray[np.float64],
    count: int,
) -> list[Pair]:
    """The samples that come nearest to a training picture, beside it; the most suspicious first."""
    sample_readers, train_readers = ([ShardReader(shard, few=True) for shard in split] for split in (samples, train))
    pairs = []
    for index in np.argsort(distance_N, kind="stable")[:count]:
        reader, place = _locate(train_readers, int(neighbour_N[index]))
        words = f"{reader.table[place]['caption']}: distance {distance_N[index]:.1f}"
        sample_uri = _stored_uri(*_locate(sample_readers, int(index)))
        pairs.append(Pair(sample_uri, _stored_uri(reader, place), words))
    return pairs


def _locate(readers: Sequence[ShardReader], index: int) -> tuple[ShardReader, int]:
    for reader in readers:
        if index < len(reader):
            return reader, index
        index -= len(reader)
    raise AssertionError("features and shards list the same pictures")


def _stored_uri(reader: ShardReader, index: int) -> str:
    return picture_uri(decode_image(reader.read_image(index), 3))
