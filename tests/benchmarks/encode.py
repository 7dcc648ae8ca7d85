"""The encode stage in pictures a second, against its encoder alone and against taming-transformers' encode, on CPUs.

    python tests/benchmarks/encode.py [--pictures 1000] [--rounds 3] [--batch 16]

The reference architecture at 64x64 (`ch` 64, `ch_mult` 1,2,2, attention at 16, 1,024 codes of 256), fp32, as many
threads as there are cores, equal batches and weights; pictures are windows of scikit-image's photographs.
- `stage`: the encode stage through the local runtime, from shards on disk to committed Parquet: loading the tokenizer,
  reading, hashing and decoding PNG, the network, writing, syncing. Shards of 250, so the last batch of each is padded.
- `bare loop`: our encoder and nearest code on full batches that lie in memory as float tensors.
- `taming`: its ImagePaths over the same pictures as PNG files, a DataLoader with two processes, `VQModel.encode`, and
  one `numpy.save`; the model is loaded before the clock starts. It has a process of its own, for the stage's keeps
  freed memory.
Imports and process start-up are left out. Rounds are interleaved, medians count. The last line is a JSON object:
`ratio_vs_bare_loop` and `ratio_vs_taming` are the stage's pictures a second over theirs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.artifacts import Artifact, Source
from pipeline.config import StrictModel
from pipeline.output import Output
from pipeline.runner import run_stage
from pipeline.runtime import BoundRuntime, LocalRuntime, available_cores
from pipeline.stage import Stage
from stages.data.images import to_model_range
from stages.data.shards import ShardReader, open_split
from stages.data.sources import FolderSource, list_source
from stages.data.tables import read_tokens
from stages.encode import EncodeWork, encode
from stages.models.tokenizer import Tokenizer
from stages.models.tokenizer_config import EMAQuantizerConfig, ReferenceBackboneConfig, TokenizerModelConfig
from stages.shard import ShardConfig, shard
from tests import peers
from tests.benchmarks.support.contestants import Contestant

SIZE = 64
PER_SHARD = 250
LOADER_PROCESSES = 2
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg", "hubble_deep_field.jpg")
MODEL = TokenizerModelConfig(
    backbone=ReferenceBackboneConfig(base_channels=64, multipliers=(1, 2, 2), num_res_blocks=2, z_channels=256),
    quantizer=EMAQuantizerConfig(num_codes=1024, dim=256),
)


class NoConfig(StrictModel):
    """Of the stage that makes an untrained tokenizer."""


@dataclass(frozen=True)
class Bench:
    """What the contestants work on."""

    folder: Path
    batch: int
    shards: Artifact
    tokenizer: Artifact
    model: Tokenizer
    paths: list[str]
    """The pictures as files."""


def main() -> None:
    """Measure, compare the tokens, and print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(available_cores())
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(Path(folder), arguments.pictures, arguments.batch)
        rates, results = take_turns(bench, arguments.rounds)
        equal = agreement(bench, results["stage"], results["taming"])
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"\n{'':12}pictures/s (median of {arguments.rounds})")
    for name, median in medians.items():
        print(f"{name:12}{median:8.1f}")
    print(f"agreement: {equal:.4%} of the tokens are the same")
    assert equal > 0.999, "the two do not make the same tokens"
    figures = {
        "benchmark": "encode",
        "pictures": arguments.pictures,
        "pictures_per_second": {name: round(median, 1) for name, median in medians.items()},
        "ratio_vs_bare_loop": round(medians["stage"] / medians["bare loop"], 3),
        "ratio_vs_taming": round(medians["stage"] / medians["taming"], 2),
        "tokens_equal": round(equal, 5),
    }
    print(json.dumps(figures))


def take_turns(bench: Bench, rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Pictures a second of each contestant in every round, and the last results."""
    bare = bare_loop(bench)
    rates: dict[str, list[float]] = {"stage": [], "bare loop": [], "taming": []}
    results: dict[str, Any] = {}
    with Contestant(taming_encoder, bench) as theirs:
        contestants: dict[str, Callable[[int], tuple[float, tuple[int, Any]]]] = {
            "stage": timed(partial(run_encode_stage, bench)),
            "bare loop": timed(bare),
            "taming": theirs,
        }
        for number in range(rounds):
            for name, run in contestants.items():
                seconds, (pictures, results[name]) = run(number)
                rates[name].append(pictures / seconds)
                print(f"round {number + 1}  {name:10} {rates[name][-1]:7.1f} pictures/s", flush=True)
    return rates, results


def timed(run: Callable[[int], Any]) -> Callable[[int], tuple[float, Any]]:
    """The same in this process, as a Contestant answers: seconds and result."""

    def call(number: int) -> tuple[float, Any]:
        started = time.perf_counter()
        result = run(number)
        return time.perf_counter() - started, result

    return call


def prepare(folder: Path, count: int, batch: int) -> Bench:
    """Pictures as files, the same in shards, and a tokenizer whose codes are vectors of such pictures."""
    paths = make_pictures(folder / "pictures", count)
    source = FolderSource(path=str(folder / "pictures"))
    config = ShardConfig(source=source, image_size=SIZE, samples_per_shard=PER_SHARD, validation_fraction=0.0)
    inputs: dict[str, Any] = {"source": Source("pictures", partial(list_source, source))}
    shards = run_stage(Stage("shard", shard, config, inputs), inputs, str(folder / "runs"), LocalRuntime())
    stage = Stage("tokenizer", partial(make_tokenizer, paths), NoConfig(), {})
    tokenizer = run_stage(stage, {}, str(folder / "runs"), LocalRuntime())
    model = Tokenizer.load(tokenizer.local("model.safetensors").parent)
    return Bench(folder, batch, shards, tokenizer, model, paths)


def make_pictures(folder: Path, count: int) -> list[str]:
    """Cut windows of 64x64 pixels out of scikit-image's photographs at half their size, as PNG."""
    import skimage

    folder.mkdir()
    originals = [Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB") for name in PHOTOGRAPHS]
    draw = np.random.default_rng(0)
    paths = []
    for number in range(count):
        original = originals[number % len(originals)]
        left, top = (int(draw.integers(0, side - 2 * SIZE + 1)) for side in original.size)
        box = (left, top, left + 2 * SIZE, top + 2 * SIZE)
        path = folder / f"window-{number:05d}.png"
        original.resize((SIZE, SIZE), Image.Resampling.HAMMING, box).save(path)
        paths.append(str(path))
    return paths


def make_tokenizer(paths: list[str], config: NoConfig, *, output: Output, runtime: BoundRuntime) -> dict[str, int]:
    """An untrained tokenizer as a finished artifact."""
    torch.manual_seed(0)
    model = Tokenizer(MODEL, image_size=SIZE, channels=3)
    some = np.stack([np.asarray(Image.open(path)) for path in paths[: len(PHOTOGRAPHS) * 2]])
    peers.spread_codes(model, to_model_range(some))
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder))
        for path in sorted(Path(folder).iterdir()):
            output.write(path.name, path.read_bytes())
    return {}


def run_encode_stage(bench: Bench, number: int) -> tuple[int, Artifact]:
    """The whole stage into a workdir of its own."""
    config = EncodeWork(batch_size=bench.batch, threads=available_cores())
    inputs = {"shards": bench.shards, "tokenizer": bench.tokenizer}
    stage = Stage("encode", encode, config, inputs)  # type: ignore[arg-type]  # run_stage takes finished inputs
    artifact = run_stage(stage, inputs, str(bench.folder / f"encode-{number}"), LocalRuntime())
    return int(artifact.metrics["pictures"]), artifact


def bare_loop(bench: Bench) -> Callable[[int], tuple[int, None]]:
    """Our encoder over tensors in memory, loaded and laid out as the stage does it."""
    images = np.stack([np.asarray(Image.open(path)) for path in bench.paths])
    batches = [to_model_range(images[start : start + bench.batch]) for start in range(0, len(images), bench.batch)]
    full = [x_BCHW for x_BCHW in batches if len(x_BCHW) == bench.batch]

    def run(number: int) -> tuple[int, None]:
        with torch.inference_mode():
            for x_BCHW in full:
                bench.model.encode(x_BCHW).numpy()
        return len(full) * bench.batch, None

    return run


def taming_encoder(bench: Bench) -> Callable[[int], tuple[int, np.ndarray]]:
    """taming's encode over its own data set, and what a user keeps of it: an array of tokens in a file."""
    torch.set_num_threads(available_cores())
    model = peers.taming_vqgan(MODEL, image_size=SIZE, disc_start=0).eval()
    peers.copy_weights(model, bench.model)
    dataset = peers.taming("data.base").ImagePaths(paths=bench.paths)

    def run(number: int) -> tuple[int, np.ndarray]:
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=bench.batch, num_workers=LOADER_PROCESSES, multiprocessing_context="fork"
        )
        tokens = []
        with torch.no_grad():
            for batch in loader:
                _, _, (_, _, indices_BHW) = model.encode(model.get_input(batch, "image"))
                tokens.append(indices_BHW.flatten(1).numpy())
        tokens_NT = np.concatenate(tokens)
        np.save(bench.folder / "tokens.npy", tokens_NT)
        return len(tokens_NT), tokens_NT

    return run


def agreement(bench: Bench, artifact: Artifact, theirs_NT: np.ndarray) -> float:
    """The share of tokens that both gave the same picture."""
    rows = {Path(path).name: row for row, path in enumerate(bench.paths)}
    tables = {unit.name: read_tokens(artifact.local(entry.path)) for unit, entry in artifact.unit_files(".parquet")}
    equal = []
    for stored in open_split(bench.shards, "train"):
        sources = [row["source"] for row in ShardReader(stored).table]
        expected_NT = theirs_NT[[rows[Path(source).name] for source in sources]]
        equal.append((tables[stored.name].tokens_NT == expected_NT).mean(axis=1))
    assert sum(map(len, equal)) == len(theirs_NT), "some pictures are missing"
    return float(np.concatenate(equal).mean())


if __name__ == "__main__":
    main()
