"""Trains a small tokenizer on one rank and on several with the same global batch, everything on from the first step.

    python -m tests.ranks_side_by_side --ranks 2 --steps 20

prints the losses of every step side by side and the largest relative difference of each.
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


def histories(folder: Path, ranks: list[int], steps: int) -> dict[int, list[dict[str, float]]]:
    """Return the history of the tokenizer for each number of ranks."""
    discriminator = {"start": 0, "warmup_steps": 0, "ramp_steps": 0, "base_channels": 8}
    tokenizer = {
        **SMALL["tokenizer"],  # type: ignore[dict-item]
        "steps": steps,
        "record_every": 1,
        "validate_every": steps,
        "losses": {"discriminator": discriminator},
    }
    found = {}
    for world in ranks:
        config = small_config(folder, tokenizer=tokenizer, cluster={"num_workers": world, "threads": 1})
        workdir = folder / f"runs-{world}"
        command = [*COMMAND, "--config", str(config), "--workdir", str(workdir), "--no-tracking"]
        subprocess.run([*command, "--stages", "shard,tokenizer"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        lines = (workdir / "tokenizer/latest/history.jsonl").read_text().splitlines()
        found[world] = [row for line in lines if "train/reconstruction" in (row := json.loads(line))]
    return found


def main() -> None:
    """Train, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        draw_pictures(Path(name) / "pictures", 120)
        found = histories(Path(name), [1, options.ranks], options.steps)
    worst = dict.fromkeys(SHOWN, 0.0)
    print("step  " + "  ".join(f"{name[:19]:>19}" for name in SHOWN))
    for one, many in zip(found[1], found[options.ranks], strict=True):
        pairs = [(one[f"train/{name}"], many[f"train/{name}"]) for name in SHOWN]
        print(f"{one['step']:4}  " + "  ".join(f"{a:9.5f} {b:9.5f}" for a, b in pairs))
        for name, (a, b) in zip(SHOWN, pairs, strict=True):
            worst[name] = max(worst[name], abs(a - b) / max(abs(a), 1e-6))
    print("worst " + "  ".join(f"{worst[name]:19.1e}" for name in SHOWN))


if __name__ == "__main__":
    main()
