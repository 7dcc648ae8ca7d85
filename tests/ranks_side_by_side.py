"""Trains a small tokenizer on one rank and on several with the same global batch, everything on from the first step.

    python -m tests.ranks_side_by_side --ranks 1,2,3 --steps 50 --precision fp64

prints the losses of every step side by side, a column a number of ranks, and the largest relative difference of each
from the first column. In float64 what is left is the order of sums; in float32 training magnifies it, and now and then
a vector chooses another code.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from tests.pictures import draw_pictures
from tests.small import COMMAND, ROOT, SMALL, small_config

SHOWN = ("reconstruction", "perceptual", "codebook", "adversarial", "adaptive_weight", "discriminator", "perplexity")
DISCRIMINATOR = {"start": 0, "warmup_steps": 0, "ramp_steps": 0, "base_channels": 8, "lecam_weight": 0.1}
Row = dict[str, float]


def histories(
    folder: Path, ranks: list[int], *, steps: int, precision: str, micro_batch: int | None
) -> list[list[Row]]:
    """Return the history of the tokenizer for each number of ranks."""
    tokenizer = {
        **SMALL["tokenizer"],  # type: ignore[dict-item]
        "steps": steps,
        "precision": precision,
        "record_every": 1,
        "validate_every": steps,
        "losses": {"discriminator": DISCRIMINATOR},
    }
    found = []
    for world in ranks:
        cluster = {"num_workers": world, "threads": 1, "micro_batch": micro_batch}
        config = small_config(folder, tokenizer=tokenizer, cluster=cluster)
        workdir = folder / f"runs-{world}"
        command = [*COMMAND, "--config", str(config), "--workdir", str(workdir), "--no-tracking"]
        subprocess.run([*command, "--stages", "shard,tokenizer"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        lines = (workdir / "tokenizer/latest/history.jsonl").read_text().splitlines()
        found.append([row for line in lines if "train/reconstruction" in (row := json.loads(line))])
    return found


def show(ranks: list[int], found: list[list[Row]]) -> dict[str, float]:
    """Print the rows side by side; return the worst relative difference of each number."""
    digits = 10
    width = (digits + 1) * len(ranks)
    worst = dict.fromkeys(SHOWN, 0.0)
    print("step  " + "  ".join(f"{name[:width]:>{width}}" for name in SHOWN))
    print("ranks " + "  ".join("".join(f" {world:{digits}}" for world in ranks) for _ in SHOWN))
    for rows in zip(*found, strict=True):
        columns = {name: [row[f"train/{name}"] for row in rows] for name in SHOWN}
        cells = ("".join(f" {value:{digits}.6f}" for value in values) for values in columns.values())
        print(f"{rows[0]['step']:4}  " + "  ".join(cells))
        for name, (first, *others) in columns.items():
            worst[name] = max([worst[name], *(abs(value - first) / max(abs(first), 1e-6) for value in others)])
    print("worst " + "  ".join(f"{worst[name]:{width}.1e}" for name in SHOWN))
    return worst


def main() -> None:
    """Train, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks, separated by commas")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", choices=("fp32", "fp64"), default="fp32")
    parser.add_argument("--micro-batch", type=int, help="pictures a rank takes at once")
    options = parser.parse_args()
    ranks = [int(number) for number in options.ranks.split(",")]
    with tempfile.TemporaryDirectory() as name:
        draw_pictures(Path(name) / "pictures", 120)
        found = histories(
            Path(name), ranks, steps=options.steps, precision=options.precision, micro_batch=options.micro_batch
        )
    show(ranks, found)


if __name__ == "__main__":
    main()
