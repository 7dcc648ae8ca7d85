"""What 10% new pictures cost: seconds of shard and encode on a folder that grew, against from scratch on the same one.

    python tests/benchmarks/grow.py [--poses 8] [--rounds 3]

The pictures are the packaged emoji in eight poses: turned by 0, 90, 180 and 270 degrees, and mirrored. Both sides are
commands of their own, `run_pipeline.py --stages shard` and `--stages encode`, with `--runtime local` (Ray starts for 10
to 20 s, on both sides alike); the tokenizer is the same and kept. `ratio` compares the seconds of the two stages as
their manifests have them, with the import of torch and the loading of the tokenizer, which a grown folder needs as
well; `ratio_of_commands` whole commands, with Python's start and the listing. Rounds are interleaved, medians count.
The last line is a JSON object; the goal for `ratio` is at most 0.2.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stages.data.emoji import emoji_files, emoji_folder, emoji_pictures
from tests.small import COMMAND, ROOT

NEW = 0.1
STAGES = ("shard", "encode")


def main() -> None:
    """Measure, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--poses", type=int, default=8, choices=range(1, 9), help="pictures made of each emoji")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="smalti-grow-") as name:
        home = Path(name)
        paths = draw(home / "pictures", options.poses)
        away = [path for number, path in enumerate(paths) if number % round(1 / NEW) == 0]
        for path in away:
            path.rename(home / path.name)
        run(home, home / "before", "tokenizer.steps=20")
        for path in away:
            (home / path.name).rename(path)
        sides: dict[str, list[dict[str, float]]] = {"grown": [], "from scratch": []}
        for number in range(options.rounds):
            sides["grown"].append(grown(home, home / f"grown-{number}"))
            sides["from scratch"].append(from_scratch(home, home / f"scratch-{number}"))
            for side, rounds in sides.items():
                shown = "  ".join(f"{key} {value:6.1f} s" for key, value in rounds[-1].items())
                print(f"round {number + 1}  {side:14}{shown}", flush=True)
    medians = {
        side: {key: statistics.median(it[key] for it in rounds) for key in rounds[0]} for side, rounds in sides.items()
    }
    stages, commands = (
        [sum(medians[side][key] for key in keys) for side in ("grown", "from scratch")]
        for keys in (STAGES, ("commands",))
    )
    figures = {
        "benchmark": "grow",
        "pictures": len(paths),
        "new": len(away),
        "seconds_grown": round(stages[0], 2),
        "seconds_from_scratch": round(stages[1], 2),
        "ratio": round(stages[0] / stages[1], 3),
        "ratio_of_commands": round(commands[0] / commands[1], 3),
    }
    print(json.dumps(figures))


def draw(folder: Path, poses: int) -> list[Path]:
    """Write each emoji in so many poses below its class; return the files, mixed over classes."""
    paths = []
    for picture in emoji_pictures(list(emoji_files(skin_variants=True)), skin_variants=True):
        target = folder / picture.label
        target.mkdir(parents=True, exist_ok=True)
        image = Image.open(emoji_folder() / picture.path).convert("RGBA")
        for pose in range(poses):
            path = target / f"{Path(picture.path).stem}-{pose}.png"
            side = image if pose < 4 else ImageOps.mirror(image)
            side.rotate(90 * pose).save(path, compress_level=1)
            paths.append(path)
    return paths


def grown(home: Path, workdir: Path) -> dict[str, float]:
    """Take up the workdir of before, in which nine tenths are finished."""
    shutil.copytree(home / "before", workdir, symlinks=True)
    old = {stage: manifest(workdir, stage)["units"] for stage in STAGES}
    seconds = run(home, workdir, "tokenizer.steps=20")
    for stage, units in old.items():
        now = manifest(workdir, stage)["units"]
        assert [unit for unit in now if unit in units] == units and len(now) > len(units), f"{stage} made units again"
    shutil.rmtree(workdir)
    return seconds


def from_scratch(home: Path, workdir: Path) -> dict[str, float]:
    """Do it all in an empty workdir, with the same tokenizer's weights."""
    weights = (home / "before/tokenizer/latest").resolve()
    seconds = run(home, workdir, f"tokenizer.from_checkpoint={weights}", "tokenizer.steps=0")
    assert not any(manifest(workdir, stage)["notes"]["units_reused"] for stage in STAGES)
    shutil.rmtree(workdir)
    return seconds


def run(home: Path, workdir: Path, *overrides: str) -> dict[str, float]:
    """Run shard, tokenizer and encode, a command each; return the seconds of both commands, and of both stages."""
    commands = 0.0
    for stage in ("shard", "tokenizer", "encode"):
        arguments: Sequence[str] = [
            *("--stages", stage, "--runtime", "local", "--no-tracking", "--workdir", str(workdir)),
            *("shard.source.kind=folder", f"shard.source.path={home}/pictures", "tokenizer.policy=keep", *overrides),
        ]
        started = time.monotonic()
        done = subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        commands += time.monotonic() - started if stage in STAGES else 0
    return {"commands": commands, **{stage: manifest(workdir, stage)["notes"]["seconds"] for stage in STAGES}}


def manifest(workdir: Path, stage: str) -> dict[str, Any]:
    """The manifest of what a stage made last."""
    found: dict[str, Any] = json.loads((workdir / stage / "latest/manifest.json").read_text())
    return found


if __name__ == "__main__":
    main()
