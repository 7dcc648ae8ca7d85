"""Sharding photographs: ours against img2dataset 1.47.0, two processes each, 640x480-1024x768 JPEG to 256 px JPEG.

    python tests/benchmarks/shard.py [--pictures 600] [--rounds 3]

Both read local files, resize the shortest side, keep the middle, encode JPEG at quality 95 with 4:2:0 chroma, hash
every picture, and write WebDataset tars with an index or table. Start-up is left out: the clock runs from the moment
the first shard is begun until the last is finished (ours: hashed, synced and committed as well), as img2dataset's own
statistics and our workers record it. Rounds are interleaved, medians count. Its number of threads is its
own default (256 a process).
img2dataset is installed into an environment of its own (cached in the system's temporary folder).
The last line is a JSON object with `ratio`: our pictures a second over theirs.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.support.peer_environments import peer_environment

PEER = "img2dataset==1.47.0"
SIDE = 256
PROCESSES = 2
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg", "hubble_deep_field.jpg")


def main() -> None:
    """Run both, interleaved, and print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    python = peer_environment("img2dataset", [PEER])
    with tempfile.TemporaryDirectory(prefix="smalti-shard-") as scratch:
        photographs = Path(scratch) / "photographs"
        make_photographs(photographs, arguments.pictures)
        per_shard = -(-arguments.pictures // (4 * PROCESSES))  # several shards for each process, none left alone
        rates: dict[str, list[float]] = {"ours": [], "img2dataset": []}
        for round_number in range(arguments.rounds):
            for name, measured in rates.items():
                output = Path(scratch) / f"{name}-{round_number}"
                output.mkdir()
                run = run_ours if name == "ours" else lambda *a: run_peer(python, *a)
                seconds = run(photographs, output, per_shard)
                measured.append(arguments.pictures / seconds)
                print(f"round {round_number + 1}  {name:12} {measured[-1]:7.1f} pictures/s", flush=True)
        agreement = compare(Path(scratch) / "ours-0", Path(scratch) / "img2dataset-0")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"\n{'':14}pictures/s (median of {arguments.rounds})")
    for name, median in medians.items():
        print(f"{name:14}{median:8.1f}")
    print(f"agreement: PSNR {agreement:.1f} dB between both results (median)")
    assert agreement > 28, "the two do not make the same pictures"
    figures = {
        "benchmark": "shard",
        "pictures": arguments.pictures,
        "ours": round(medians["ours"], 1),
        "img2dataset": round(medians["img2dataset"], 1),
        "psnr_between": round(agreement, 1),
        "ratio": round(medians["ours"] / medians["img2dataset"], 2),
    }
    print(json.dumps(figures))


def make_photographs(folder: Path, count: int) -> None:
    """Cut photographs of 640x480 to 1024x768 out of scikit-image's, as JPEG of quality 90."""
    import skimage

    folder.mkdir()
    originals = [Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB") for name in PHOTOGRAPHS]
    draw = np.random.default_rng(0)
    for number in range(count):
        original = originals[number % len(originals)]
        width = int(draw.integers(640, 1025))
        height = width * 3 // 4
        share = draw.uniform(0.6, 1.0) * min(original.width / width, original.height / height)
        left = draw.uniform(0, original.width - share * width)
        top = draw.uniform(0, original.height - share * height)
        box = (left, top, left + share * width, top + share * height)
        photograph = np.asarray(original.resize((width, height), Image.Resampling.BICUBIC, box)).astype(np.int16)
        photograph += draw.integers(-3, 4, photograph.shape, dtype=np.int16)  # a sensor's noise: enlarging smooths
        picture = Image.fromarray(photograph.clip(0, 255).astype(np.uint8))
        picture.save(folder / f"photograph-{number:05d}.jpg", quality=90)


def run_ours(photographs: Path, output: Path, per_shard: int) -> float:
    """Shard with two processes that make and commit units, as a runtime's workers do; return the seconds."""
    from pipeline.units import Unit
    from stages.data.sources import FolderSource, list_source, read_pictures

    source = FolderSource(path=str(photographs))
    pictures = read_pictures(source, list_source(source))
    units = []
    for number, start in enumerate(range(0, len(pictures), per_shard)):
        rows = [[p.path, p.bytes, p.stamp, 0, p.caption, p.group] for p in pictures[start : start + per_shard]]
        units.append(Unit(f"train-{number:06d}", {"pictures": rows}))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, context, _start_worker, (str(photographs), str(output))) as pool:
        list(pool.map(time.sleep, [0.2] * PROCESSES))  # both processes are up before the clock starts
        times = list(pool.map(_make_unit, units))
    return max(end for _, end in times) - min(start for start, _ in times)


_process: dict[str, Any] = {}  # of a worker process: what it makes units with


def _start_worker(photographs: str, output: str) -> None:
    from pipeline.storage import Folder
    from pipeline.units import UnitStore
    from stages.data.sources import FolderSource
    from stages.shard import ShardConfig, make_packer

    config = ShardConfig(source=FolderSource(path=photographs), image_size=SIDE, image_format="jpg")
    _process["store"] = UnitStore(Folder.at(output), "shard", 1)
    _process["worker"] = make_packer(config, Path(photographs), "cpu")


def _make_unit(unit: object) -> tuple[float, float]:
    start = time.time()
    record = _process["store"].make(unit, _process["worker"])
    assert not record.counts["rejects"], record.counts["rejects"][:3]
    return start, time.time()


def run_peer(python: Path, photographs: Path, output: Path, per_shard: int) -> float:
    """Run img2dataset on file:// addresses; return the seconds from its first shard's start to its last one's end."""
    urls = output / "urls.txt"
    urls.write_text("".join(f"file://{path}\n" for path in sorted(photographs.iterdir())))
    shards = output / "shards"
    shards.mkdir()
    options = {
        "url_list": urls, "output_folder": shards, "input_format": "txt", "output_format": "webdataset",
        "image_size": SIDE, "resize_mode": "center_crop", "encode_format": "jpg", "encode_quality": 95,
        "processes_count": PROCESSES, "number_sample_per_shard": per_shard,
        "compute_hash": "sha256", "enable_wandb": False,
    }  # fmt: skip
    code = "import json, sys, img2dataset\nif __name__ == '__main__': img2dataset.download(**json.loads(sys.argv[1]))"
    program = output / "run.py"
    program.write_text(code)
    arguments = json.dumps(options, default=str)
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    done = subprocess.run(
        [python, program, arguments],
        check=False,
        cwd=output,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    statistics_files = sorted(shards.glob("*_stats.json"))
    if done.returncode or not statistics_files:
        raise SystemExit(f"img2dataset failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    rows = [json.loads(file.read_text()) for file in statistics_files]
    assert sum(row["successes"] for row in rows) == len(list(photographs.iterdir())), rows
    return float(max(row["end_time"] for row in rows) - min(row["start_time"] for row in rows))


def compare(ours: Path, theirs: Path) -> float:
    """Return the median PSNR between equal photographs in the tars of both."""
    our_pictures = dict(_pictures(ours, "source"))
    their_pictures = dict(_pictures(theirs, "url"))
    assert set(our_pictures) == set(their_pictures), "they kept different pictures"
    names = np.random.default_rng(0).choice(sorted(our_pictures), min(60, len(our_pictures)), replace=False)
    errors = (np.mean((our_pictures[name].astype(float) - their_pictures[name]) ** 2) for name in names)
    return float(statistics.median(10 * np.log10(255**2 / error) for error in errors))


def _pictures(folder: Path, name_key: str) -> Iterator[tuple[str, np.ndarray]]:
    for path in folder.rglob("*.tar"):
        with tarfile.open(path) as tar:
            members = {member.name: member for member in tar}
            for name in (name for name in members if name.endswith(".jpg")):
                about = json.load(tar.extractfile(members[name.replace(".jpg", ".json")]))  # type: ignore[arg-type]
                image = Image.open(io.BytesIO(tar.extractfile(members[name]).read()))  # type: ignore[union-attr]
                yield Path(about[name_key]).name, np.asarray(image)


if __name__ == "__main__":
    main()
