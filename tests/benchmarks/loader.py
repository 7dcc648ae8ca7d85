"""Feeding a training loop with photographs: our stream against litdata's and MosaicML's, two worker processes each.

    python tests/benchmarks/loader.py [--pictures 2048] [--rounds 5] [--epochs 3]

The same JPEG files (288 px, as our shard stage stores photographs) in the format of each: our shards, litdata's
chunks, MosaicML's MDS. Each gives float32 batches of 32 random 256 px windows, half of them mirrored, in [-1, 1], in
the process that would train. The peers decode as their formats do by themselves (litdata with torchvision, MosaicML
with Pillow), augment with torchvision's transforms, collate with torch's default, and turn bytes into floats in the
training process, which is their fastest way. The first batches of an epoch are not counted. Rounds are interleaved,
medians count.
The peers share an environment of their own over ours (torch, torchvision and Pillow are the same).
The last line is a JSON object with `ratio`: our pictures a second over those of the faster peer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.support.peer_environments import peer_environment

PEERS = (
    "litdata==0.2.76", "boto3==1.44.5", "botocore==1.44.5", "jmespath==1.1.0", "s3transfer==0.19.3",
    "mosaicml-streaming==0.13.0", "brotli==1.2.1", "catalogue==2.0.10", "cramjam==2.14.0", "huggingface-hub==0.36.2",
    "python-snappy==0.7.3", "regex==2026.11.15", "tokenizers==0.22.2", "transformers==4.57.6", "xxhash==3.8.2",
    "zstd==1.5.7.2",
)  # fmt: skip
"""The peers, and what they import and we do not have."""
STORED, SIDE = 288, 256
BATCH, WORKERS = 32, 2
CHUNK_BYTES = 2**24
WARM_UP = 8
"""Batches at the start of an epoch that are not counted: processes start, and what was made in advance is used up."""
ANSWER = "answer: "
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg", "hubble_deep_field.jpg")

Epochs = Iterator[Iterator[Any]]
"""Endless epochs of batches: float32 tensors [B, 3, SIDE, SIDE] in [-1, 1]."""


def main() -> None:
    """Let each loader write its format and read it in turn, and print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3, help="epochs of a round")
    parser.add_argument("--process", nargs=2, metavar=("NAME", "FOLDER"), help="what its processes are started with")
    arguments = parser.parse_args()
    if arguments.pictures % BATCH or arguments.pictures < 2 * WARM_UP * BATCH:
        parser.error(f"--pictures {arguments.pictures}: give a multiple of {BATCH}, {2 * WARM_UP * BATCH} at least")
    if arguments.process:
        run_process(arguments.process[0], Path(arguments.process[1]), arguments.epochs)
        return
    peers = peer_environment("loaders", PEERS, over_ours=True)
    with tempfile.TemporaryDirectory(prefix="smalti-loader-") as scratch:
        stored = make_photographs(Path(scratch) / "photographs", arguments.pictures)
        options = ["--pictures", str(arguments.pictures), "--epochs", str(arguments.epochs)]
        processes: dict[str, subprocess.Popen[str]] = {}
        means: dict[str, list[list[float]]] = {}
        for name in LOADERS:
            python = sys.executable if name == "ours" else peers
            command = [python, __file__, *options, "--process", name, scratch]
            processes[name] = subprocess.Popen(
                command, cwd=scratch, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            means[name] = answer(processes[name])
        rates: dict[str, list[float]] = {name: [] for name in LOADERS}
        for round_number in range(arguments.rounds):
            for name, measured in rates.items():
                measured.append(answer(processes[name], "again"))
                print(f"round {round_number + 1}  {name:8} {measured[-1]:7.1f} pictures/s", flush=True)
        for process in processes.values():
            process.communicate()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"\n{'':10}pictures/s (median of {arguments.rounds}; {stored / arguments.pictures / 1000:.0f} kB each)")
    for name, median in medians.items():
        print(f"{name:10}{median:8.1f}")
    apart = max(float(np.abs(np.subtract(means["ours"], means[name])).max()) for name in LOADERS)
    print(f"agreement: the mean of every picture is within {apart:.5f} of ours, on the scale [-1, 1]")
    assert apart < 0.002, "they do not give the same pictures"
    better = max(median for name, median in medians.items() if name != "ours")
    figures = {"benchmark": "loader", "pictures": arguments.pictures}
    figures |= {name: round(median, 1) for name, median in medians.items()}
    print(json.dumps({**figures, "ratio": round(medians["ours"] / better, 2)}))


def answer(process: subprocess.Popen[str], question: str = "") -> Any:
    """Ask a loader's process and wait for its answer, passing over what else it prints."""
    assert process.stdin is not None and process.stdout is not None
    if question:
        process.stdin.write(question + "\n")
        process.stdin.flush()
    for line in process.stdout:
        if line.startswith(ANSWER):
            return json.loads(line.removeprefix(ANSWER))
    raise SystemExit(f"a loader's process ended with {process.wait()}: {process.args}")


def run_process(name: str, folder: Path, epochs: int) -> None:
    """Write and look at one format, then read some epochs for every line of the input; answer with JSON."""
    import torch

    torch.set_num_threads(1)  # makes the peers faster: beside two busy processes more threads wait for one another
    write(name, sorted((folder / "photographs").iterdir()), folder / name)
    print(ANSWER + json.dumps(look(next(LOADERS[name](folder / name, augment=False)))), flush=True)
    endless = LOADERS[name](folder / name, augment=True)
    for _ in sys.stdin:
        print(ANSWER + json.dumps(rate(itertools.islice(endless, epochs))), flush=True)


def make_photographs(folder: Path, count: int) -> int:
    """Cut squares of STORED pixels out of scikit-image's photographs, encoded as our shard stage does; their bytes."""
    import skimage

    from stages.data.images import encode_image

    folder.mkdir()
    originals = [Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB") for name in PHOTOGRAPHS]
    draw = np.random.default_rng(0)
    for number in range(count):
        original = originals[number % len(originals)]
        side = draw.uniform(0.7, 1.0) * min(original.size)
        left, top = draw.uniform(0, original.width - side), draw.uniform(0, original.height - side)
        square = original.resize((STORED, STORED), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        (folder / f"photograph-{number:05d}.jpg").write_bytes(encode_image(square, "jpg"))
    return sum(path.stat().st_size for path in folder.iterdir())


def write(name: str, photographs: Sequence[Path], target: Path) -> None:
    """Write the photographs in the format of one loader."""
    if name == "ours":
        from stages.data.shards import Sample, write_shard

        target.mkdir()
        samples = [Sample(path.stem, 0, "", path.stem, path.read_bytes()) for path in photographs]
        for number, start in enumerate(range(0, len(samples), 256)):
            write_shard(target, f"train-{number:06d}", samples[start : start + 256])
    elif name == "litdata":
        from litdata import optimize

        inputs = [str(path) for path in photographs]
        optimize(Image.open, inputs, str(target), chunk_bytes=CHUNK_BYTES, num_workers=WORKERS, verbose=False)
    else:
        from streaming import MDSWriter

        with MDSWriter(out=str(target), columns={"image": "jpeg"}, size_limit=CHUNK_BYTES) as writer:
            for path in photographs:
                writer.write({"image": Image.open(path)})


def ours(folder: Path, *, augment: bool) -> Epochs:
    from stages.data.loader import ImageStream
    from stages.data.order import Order
    from stages.data.shards import ShardReader

    shards = sorted(folder.glob("*.tar"))
    order = Order([len(ShardReader(shard)) for shard in shards], seed=0)
    sizes = {"image_size": SIDE, "channels": 3, "global_batch": BATCH, "num_workers": WORKERS}
    batches = iter(ImageStream(shards, order, seed=0, horizontal_flip=augment, random_crop=augment, **sizes))
    while True:
        yield itertools.islice(batches, order.num_samples // BATCH)


def litdata(folder: Path, *, augment: bool) -> Epochs:
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(str(folder), shuffle=True, transform=transform(augment))
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True)
    while True:
        yield map(to_model_range, loader)


def mosaic(folder: Path, *, augment: bool) -> Epochs:
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader
    from torchvision.transforms import PILToTensor

    augmentation, to_tensor = transform(augment), PILToTensor()

    class Pictures(StreamingDataset):
        def __getitem__(self, at: int) -> Any:
            return to_tensor(augmentation(super().__getitem__(at)["image"].convert("RGB")))

    dataset = Pictures(local=str(folder), shuffle=True, batch_size=BATCH)
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True)
    while True:
        yield map(to_model_range, loader)


LOADERS = {"ours": ours, "litdata": litdata, "mosaic": mosaic}


def transform(augment: bool) -> Any:
    """The peers' augmentation, of a tensor or a PIL picture; without it the middle, as ours takes it."""
    from torchvision.transforms import CenterCrop, Compose, RandomCrop, RandomHorizontalFlip

    return Compose([RandomCrop(SIDE), RandomHorizontalFlip()]) if augment else CenterCrop(SIDE)


def to_model_range(x_BCHW: Any) -> Any:
    """uint8 to float32 in [-1, 1], for the peers."""
    import torch

    return x_BCHW.to(torch.float32).div_(127.5).sub_(1.0)


def rate(epochs: Epochs) -> float:
    """Pictures a second over some epochs, the first batches of each left out."""
    pictures, seconds = 0, 0.0
    for batches in epochs:
        for _ in itertools.islice(batches, WARM_UP):
            pass
        start = time.perf_counter()
        pictures += sum(len(x_BCHW) for x_BCHW in batches)
        seconds += time.perf_counter() - start
    return pictures / seconds


def look(batches: Iterator[Any]) -> list[list[float]]:
    """The means of every picture's channels in an epoch without augmentation, each channel sorted by itself."""
    means = []
    for x_BCHW in batches:
        assert x_BCHW.shape[1:] == (3, SIDE, SIDE) and str(x_BCHW.dtype) == "torch.float32"
        means += x_BCHW.mean(dim=(2, 3)).tolist()
    sorted_means: list[list[float]] = np.sort(means, axis=0).tolist()  # as rows, near ties would change places
    return sorted_means


if __name__ == "__main__":
    main()
