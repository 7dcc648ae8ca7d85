"""Shards 2,000 pictures of which some are damaged, and compares the reject list and the exit code with the truth.

    python -m tests.corrupt_pictures [--pictures 2000]

For 0, 1 and 5% damaged pictures, in seven ways, runs the command line on either side of `max_reject_fraction`, then
again after repair; and once with a picture that cannot be read any more half way.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from tests.small import COMMAND, ROOT
from tests.stages.data.hostile import encoded, png_header

DAMAGE = {
    "empty": lambda good: b"",
    "not_a_picture": lambda good: b"this is text\n" * 40,
    "broken": lambda good: good[: len(good) // 2],
    "too_many_pixels": lambda good: png_header(60_000, 60_000),
    "too_small": lambda good: encoded(Image.new("RGB", (64, 8)), "PNG"),
    "unknown_range": lambda good: encoded(Image.new("F", (64, 64)), "TIFF"),
    "too_many_scans": lambda good: b"\xff\xd8" + b"\xff\xda" * 300,
}
"""By the code that the reject list must give it."""


def draw(folder: Path, count: int, damaged: int) -> dict[str, str]:
    """Write pictures in four classes, spread the damage over them; return path -> code of the damaged ones."""
    luck, truth = np.random.default_rng(damaged), {}
    bad = dict(zip(luck.choice(count, damaged, replace=False).tolist(), range(damaged), strict=True))
    for number in range(count):
        path = folder / f"class{number % 4}" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = encoded(Image.fromarray(luck.integers(0, 256, (32, 32, 3), dtype=np.uint8)), "PNG", compress_level=1)
        if number in bad:
            code = list(DAMAGE)[bad[number] % len(DAMAGE)]
            truth[path.relative_to(folder).as_posix()] = code
            data = DAMAGE[code](data)
        path.write_bytes(data)
    return truth


def shard(folder: Path, workdir: Path, fraction: float, *, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    """Run the stage; return exit code and what was printed."""
    keys = {"source.kind": "folder", "source.path": folder, "max_reject_fraction": fraction, "image_size": 32}
    command = [*prefix, *COMMAND, "--stages", "shard", "--runtime", "local", "--no-tracking", "--workdir", str(workdir)]
    command += [f"shard.{key}={value}" for key, value in keys.items()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def rejects(workdir: Path) -> dict[str, str]:
    """The latest reject list: path -> code."""
    lists = sorted(workdir.glob("memory/shard/*/rejects.jsonl"), key=os.path.getmtime)
    rows = [json.loads(line) for line in lists[-1].read_text().splitlines()]
    return {row["path"]: row["code"] for row in rows}


def compare(home: Path, count: int, percent: int) -> list[str]:
    """What is wrong with a source of so many damaged pictures; prints a line for each run."""
    folder, workdir = home / f"pictures{percent}", home / f"runs{percent}"
    truth = draw(folder, count, count * percent // 100)
    share, complaints = len(truth) / count, []
    limits = [(share, 0)] + ([(share - 1 / count, 3)] if truth else [])
    for limit, expected in reversed(limits):
        started = time.monotonic()
        code, text = shard(folder, workdir, limit)
        exact = rejects(workdir) == truth
        said = re.search(r"error: .*", text)
        print(
            f"{percent}% of {count}: {len(truth)} damaged, max_reject_fraction={limit:g}: exit {code}, "
            f"reject list {'exact' if exact else 'WRONG'}, {time.monotonic() - started:.0f} s",
            flush=True,
        )
        if said:
            print(f"    {said[0][:300]}")
        if code != expected or not exact or "Traceback" in text:
            complaints.append(f"{percent}%, limit {limit:g}: exit {code}, expected {expected}\n{text[-2000:]}")
    return complaints


def lose(home: Path, count: int) -> list[str]:
    """A picture that cannot be read any more, as another user and as a vanished file; and the run after repair."""
    complaints = []
    folder, workdir = home / "pictures_lost", home / "runs_lost"
    draw(folder, count, 0)
    lost = folder / "class1" / "00001.png"
    lost.chmod(0)
    prefix = ("setpriv", "--reuid", "65534", "--clear-groups") if os.getuid() == 0 else ()
    home.chmod(0o755)
    workdir.mkdir()
    workdir.chmod(0o777)
    code, text = shard(folder, workdir, 0.5, prefix=prefix)
    said = (re.search(r"error: .*", text) or [text[-500:]])[0]
    print(f"no permission for one picture: exit {code}\n    {said[:300]}", flush=True)
    if code != 3 or "Permission denied" not in said or "Traceback" in text:
        complaints.append(f"permission: exit {code}\n{text[-2000:]}")
    lost.chmod(0o644)
    code, text = shard(folder, workdir, 0.0, prefix=prefix)
    finished = rejects(workdir) == {}
    print(f"the same command after repair: exit {code}, {'no picture lost' if finished else 'WRONG'}", flush=True)
    return complaints + ([] if code == 0 and finished else [f"after repair: exit {code}\n{text[-2000:]}"])


def main() -> int:
    """Run all and print what differs from the truth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--percent", type=int, nargs="*", default=[0, 1, 5])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        complaints = [it for percent in options.percent for it in compare(home, options.pictures, percent)]
        complaints += lose(home, 40)
    print(*complaints, sep="\n")
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main())
