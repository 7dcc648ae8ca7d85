"""Damages finished files and looks whether the next stage notices before it uses them.

    python -m tests.cut_and_flip [--flips 1000] [--pictures 48] [--stride 512]

makes a shard (tar, index, table) and a table of tokens with the real stages, cuts each file at every 512 bytes, flips
single bits at random places, and opens it each time as the next stage does and as `--verify` does. Prints the shares
detected, and what looking costs. Ends with 1 if anything went unseen.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pipeline.artifacts import Artifact, Source
from pipeline.errors import DataError
from pipeline.manifest import FileEntry
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from pipeline.storage import content
from stages.data.shards import ShardReader, open_split
from stages.data.sources import FolderSource
from stages.data.tables import read_tokens
from stages.encode import EncodeWork, encode
from stages.shard import VERSION, ShardConfig, list_source, shard
from tests.pictures import draw_pictures
from tests.stages.tiny import tiny_tokenizer

Look = Callable[[], object]


def make(folder: Path, pictures: int) -> tuple[Artifact, Artifact]:
    """Run shard and encode, with a tokenizer of random weights."""
    draw_pictures(folder / "pictures", pictures)
    workdir, runtime = str(folder / "runs"), LocalRuntime()
    cutting = ShardConfig(source=FolderSource(path=str(folder / "pictures")), image_size=16, validation_fraction=0.1)
    source = Source("pictures", partial(list_source, cutting.source))
    shards = run_stage(
        Stage("shard", shard, cutting, {"source": source}, VERSION), {"source": source}, workdir, runtime
    )
    tokenizer = tiny_tokenizer(folder / "runs")
    stage = Stage("encode", encode, EncodeWork(), {"shards": shards, "tokenizer": tokenizer})  # type: ignore[dict-item]
    return shards, run_stage(stage, {"shards": shards, "tokenizer": tokenizer}, workdir, runtime)


def read_shard(shards: Artifact) -> int:
    """Read the training shard as encode and training do: its table, then every picture."""
    reader = ShardReader(open_split(shards, "train")[0])
    return sum(len(reader.read_image(place)) for place in range(len(reader)))


def read_table(tokens: Artifact) -> int:
    """Read the table of tokens as the prior does."""
    name = next(entry.path for unit, entry in tokens.unit_files(".parquet") if unit.name.startswith("train"))
    return len(read_tokens(tokens.local(name)))


def place_of(artifact: Artifact, name: str) -> Path:
    """Where a file of an artifact lies."""
    stored = artifact.file(name)
    return stored.folder.path / stored.name


def targets(shards: Artifact, tokens: Artifact) -> dict[str, tuple[Path, Look, Artifact]]:
    """The files that are damaged, how the next stage reads each, and whose they are."""
    found: dict[str, tuple[Path, Look, Artifact]] = {}
    for suffix in (".tar", ".idx", ".json"):
        path = next(path for path in shards.folder.path.parents[1].glob(f"units/shard/*/train-000000{suffix}"))
        found[f"shard {suffix}"] = (path, partial(read_shard, shards), shards)
    name = next(entry.path for _, entry in tokens.unit_files(".parquet") if entry.path.startswith("train"))
    found["tokens .parquet"] = (place_of(tokens, name), partial(read_table, tokens), tokens)
    for file, of, stage in (("dataset.json", shards, "shard"), ("tokens.json", tokens, "encode")):
        found[f"{stage} {file}"] = (place_of(of, file), partial(of.read_json, file), of)
    return found


def damages(data: bytes, flips: int, stride: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield (kind, damaged bytes)."""
    for size in range(0, len(data), stride):
        yield "cut", data[:size]
    luck = random.Random(seed)
    for _ in range(flips):
        at = luck.randrange(len(data))
        yield "flip", data[:at] + bytes([data[at] ^ 1 << luck.randrange(8)]) + data[at + 1 :]


def noticed(look: Look) -> bool:
    """Whether reading ends in the error that names the remedy."""
    try:
        look()
    except DataError as error:
        return "remove " in str(error) and "run" in str(error)
    return False


def trial(path: Path, look: Look, whose: Artifact, flips: int, stride: int) -> dict[str, list[int]]:
    """Damage one file in every way: kind -> [cases, noticed by the next stage, noticed by --verify]."""
    good, counts = path.read_bytes(), {"cut": [0, 0, 0], "flip": [0, 0, 0]}
    look()
    for kind, bad in damages(good, flips, stride, seed=1):
        path.write_bytes(bad)
        content._found.clear()  # each case is a process that opens the file for the first time
        counts[kind][0] += 1
        counts[kind][1] += noticed(look)
        counts[kind][2] += any(str(path.name) in line for line in whose.damaged())
    path.write_bytes(good)
    content._found.clear()
    look()
    return counts


def cost(megabytes: int = 256) -> float:
    """Seconds of one core that the first opening of a file costs, a gigabyte of it."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(2**20) * megabytes)
        file.flush()
        path = Path(file.name)
        entry = FileEntry.of(path, "x")
        started = time.process_time()
        content.verified(path, entry, "")
        return (time.process_time() - started) / megabytes * 1000


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--stride", type=int, default=512)
    options = parser.parse_args()
    unseen = 0
    with tempfile.TemporaryDirectory() as name:
        found = targets(*make(Path(name), options.pictures))
        print(f"{'file':20}{'bytes':>9}{'damage':>8}{'cases':>7}{'next stage':>12}{'--verify':>10}")
        for what, (path, look, whose) in found.items():
            size = path.stat().st_size
            for kind, (cases, seen, verified) in trial(path, look, whose, options.flips, options.stride).items():
                unseen += cases - min(seen, verified)
                shares = f"{seen / cases:12.1%}{verified / cases:10.1%}" if cases else ""
                print(f"{what:20}{size:9,}{kind:>8}{cases:7}{shares}", flush=True)
    print(f"the first opening of a file in a process costs {cost():.2f} s of a core a gigabyte, later ones nothing")
    return int(unseen > 0)


if __name__ == "__main__":
    sys.exit(main())
