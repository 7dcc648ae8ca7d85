"""Batches of pictures for a training rank, in the order that `Order` gives, and whole splits as arrays.

Shapes: B batch of this rank, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.errors import DataError
from stages.data.images import Rejected, decode_image, to_model_range_channels_last
from stages.data.order import Order
from stages.data.shards import Shard, ShardReader

CACHE_BYTES = 2**30
"""Decoded pictures up to this size are kept in memory by each rank that decodes in its own process."""


OPEN_SHARDS = 64
"""Shards whose file and table are kept open by one process: four of the order's windows."""


class ImageStream:
    """Iterates over the batches of one rank for ever, from `start_step` on: float32 [B, C, H, W] in [-1, 1].

    In memory channels come last, as convolutions and decoders like them.
    The batch at step N is the same whatever the number of ranks, of processes, and of steps done before the start:
    order and augmentation are functions of (seed, position). With `num_workers=0` a data set whose decoded pictures
    fit into CACHE_BYTES is decoded once, at the first batch; a larger one, or one with `num_workers` processes,
    is decoded as it comes. Augmentation: a mirror image for every other sample with `horizontal_flip`, and
    with `random_crop` a random window instead of the middle one where stored pictures are larger than `image_size`.
    """

    def __init__(
        self,
        shards: Sequence[Shard | Path],
        order: Order,
        *,
        seed: int,
        image_size: int,
        channels: int,
        global_batch: int,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        num_workers: int = 0,
        horizontal_flip: bool = False,
        random_crop: bool = False,
    ) -> None:
        self.readers = [ShardReader(shard) for shard in shards]
        counts = tuple(self._counts())
        assert counts == order.counts, f"the order is over {order.counts}, the shards hold {counts}"
        assert global_batch >= world, f"a batch of {global_batch} leaves some of {world} ranks without a sample"
        self._open = dict.fromkeys(
            range(len(self.readers))[:OPEN_SHARDS]
        )  # numbers of open shards, the one used last at the end
        self.order = order
        self.image_size = image_size
        self.channels = channels
        self.start_step = start_step
        self.num_workers = num_workers
        self._slice = (global_batch, rank, world)
        self._augmentation = _Augmentation(seed, image_size, horizontal_flip, random_crop)

    def __iter__(self) -> Iterator[torch.Tensor]:
        batches: Iterator[torch.Tensor]
        if self.num_workers == 0:
            batches = (self.pictures(step) for step in itertools.count(self.start_step))
        else:
            batches = self._batches_of_processes()
        return (to_model_range_channels_last(pictures_BHWC.numpy()) for pictures_BHWC in batches)

    def _batches_of_processes(self) -> Iterator[torch.Tensor]:
        """Batches as bytes through shared memory, a quarter of what they are as floats.

        The first one is made here: the processes start meanwhile, with all imported that decoding needs, and what is
        wrong with the pictures is raised where people look for it.
        """
        first_BHWC = self.pictures(self.start_step)
        others = DataLoader(
            _Steps(self),
            sampler=itertools.count(self.start_step + 1),  # endless
            batch_size=None,
            num_workers=self.num_workers,
            prefetch_factor=2,
        )
        return itertools.chain([first_BHWC], iter(others))

    def pictures(self, step: int) -> torch.Tensor:
        """Return this rank's pictures at `step` after augmentation: uint8 [B, H, W, C]."""
        samples = self.order.batch(step, *self._slice)
        cached = self._cache
        if cached is not None:
            starts, all_NHWC = cached
            stored = [all_NHWC[starts[shard] + index] for _, shard, index in samples]
        else:
            stored = [_decode(self._reader(shard), index, self.channels) for _, shard, index in samples]
        positions = np.array([position for position, _, _ in samples], dtype=np.uint64)
        return self._augmentation(stored, positions)

    @cached_property
    def _cache(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return (first picture of each shard, all pictures) where they may be kept in this process."""
        rows = (row for reader in self.readers for row in reader.table)
        first = next(rows)
        height, width = first["height"], first["width"]
        if self.num_workers > 0 or self.order.num_samples * height * width * self.channels > CACHE_BYTES:
            return None
        if any((row["height"], row["width"]) != (height, width) for row in rows):
            return None
        starts = np.concatenate([[0], np.cumsum(self.order.counts)])
        return starts, _decode_all(self.readers, (height, width, self.channels))

    def _counts(self) -> Iterator[int]:
        for number, reader in enumerate(self.readers):
            yield len(reader)
            if number >= OPEN_SHARDS:
                reader.close()

    def _reader(self, shard: int) -> ShardReader:
        """Return the reader of a shard, and close the one that was not used for longest where too many are open."""
        self._open.pop(shard, None)
        self._open[shard] = None
        if len(self._open) > OPEN_SHARDS:
            longest_unused = next(iter(self._open))
            del self._open[longest_unused]
            self.readers[longest_unused].close()
        return self.readers[shard]


def load_all(shards: Sequence[Shard | Path], channels: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Decode every sample of some shards: (uint8 [N, H, W, C], int64 labels [N], keys). For sets that fit in memory.

    Raises DataError where pictures differ in size or there are none.
    """
    readers = [ShardReader(shard) for shard in shards]
    rows = [row for reader in readers for row in reader.table]
    sizes = sorted({(row["height"], row["width"]) for row in rows})
    if len(sizes) != 1:
        raise DataError(f"{len(readers)} shards hold {len(rows)} pictures of the sizes {sizes}: one size is needed")
    pictures = _decode_all(readers, (*sizes[0], channels))
    return pictures, np.array([row["label"] for row in rows], dtype=np.int64), [row["key"] for row in rows]


class _Augmentation:
    """Cuts stored pictures to `image_size` and mirrors them, by a hash of (seed, position)."""

    def __init__(self, seed: int, image_size: int, horizontal_flip: bool, random_crop: bool) -> None:
        self.seed = np.frombuffer(hashlib.sha256(f"augment/{seed}".encode()).digest()[:8], dtype="<u8")[0]
        self.image_size = image_size
        self.horizontal_flip = horizontal_flip
        self.random_crop = random_crop

    def __call__(self, stored: Sequence[np.ndarray], positions: np.ndarray) -> torch.Tensor:
        size = self.image_size
        bits = _mix(positions ^ self.seed)
        batch_BHWC = np.empty((len(stored), size, size, stored[0].shape[2]), dtype=np.uint8)
        for n, picture in enumerate(stored):
            spare_y, spare_x = picture.shape[0] - size, picture.shape[1] - size
            if min(spare_y, spare_x) < 0:
                raise DataError(f"stored pictures are {picture.shape[1]}x{picture.shape[0]}, image_size is {size}")
            draw = int(bits[n])
            top, left = (spare_y + 1) // 2, (spare_x + 1) // 2
            if self.random_crop:
                top, left = (draw >> 8 & 0xFFFFFF) % (spare_y + 1), (draw >> 32 & 0xFFFFFF) % (spare_x + 1)
            batch_BHWC[n] = picture[top : top + size, left : left + size]
            if self.horizontal_flip and draw & 1:
                # Ten times as fast as numpy, which copies rows of three-byte pixels byte by byte.
                batch_BHWC[n] = torch.from_numpy(batch_BHWC[n]).permute(2, 0, 1)[None].flip(3)[0].permute(1, 2, 0)
        return torch.from_numpy(batch_BHWC)


class _Steps(Dataset[torch.Tensor]):
    """The stream as DataLoader processes see it: a batch for each step."""

    def __init__(self, stream: ImageStream) -> None:
        self.stream = stream

    def __getitem__(self, step: int) -> torch.Tensor:
        return self.stream.pictures(step)


def _decode_all(readers: Sequence[ShardReader], shape: tuple[int, int, int]) -> np.ndarray:
    pictures = np.empty((sum(len(reader) for reader in readers), *shape), dtype=np.uint8)
    numbers = iter(range(len(pictures)))
    for reader in readers:
        for index in range(len(reader)):
            pictures[next(numbers)] = _decode(reader, index, shape[2])
        reader.close()
    return pictures


def _decode(reader: ShardReader, index: int, channels: int) -> np.ndarray:
    try:
        return decode_image(reader.read_image(index), channels)
    except Rejected as error:
        raise DataError(f"{reader.path}: picture {index} cannot be decoded: {error.reason}") from None


def _mix(values: np.ndarray) -> np.ndarray:
    """Return 64 well mixed bits for each uint64 (splitmix64's finaliser; Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(values ^ (values >> np.uint64(31)))
