"""A week of scheduled retraining in minutes: seven days of emoji that arrive in parts, and what can go wrong.

    python -m tests.week [--small] [--runtime local|ray] [--keep FOLDER]

Each day is a `python run_pipeline.py` of its own, as a scheduler starts it, on a folder of pictures that grows: new
ones, none, some that are corrupt, a bad learning rate, a driver that is killed half way, a rollback. Prints a table;
the units of earlier days are hashed before and after each day. The exit code is 1 if anything is not as it must be.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.storage import Folder
from pipeline.versions.registry import Registry
from stages.data.emoji import emoji_files, emoji_folder, emoji_pictures
from tests.small import COMMAND, ROOT, SMALL

ALL = {"shard", "tokenizer", "encode", "prior", "sample", "evaluate", "publish"}
RETRAINED = {"shard", "encode", "prior", "sample", "evaluate", "incumbent", "publish"}
"""What must run when pictures came: the tokenizer is kept, and the incumbent's tokens are today's."""
REUSED = ("shard", "encode")
"""Stages whose units of earlier days must stay as they are."""

CONFIG: dict[str, Any] = {
    "shard": {"image_size": 32, "samples_per_shard": 64, "validation_fraction": 0.15, "max_reject_fraction": 0.05},
    "tokenizer": {
        "model": {"backbone": {"kind": "light", "channels": [16, 32, 32]}, "quantizer": {"num_codes": 128}},
        "losses": {"perceptual_weight": 0.0, "discriminator": {"weight": 0.0}},
        "optimizer": {"schedule_steps": 150},
        "steps": 150,
        "validate_every": 75,
        "validation_pictures": 32,
        "policy": "keep",
    },
    "prior": {
        "model": {"num_layers": 2, "num_heads": 2, "width": 64},
        "steps": 120,
        "schedule_steps": 120,
        "warmup_steps": 10,
        "validate_every": 20,
        "policy": "warm",
        "warm_steps": 80,
    },
    "sample": {"num_samples": 64, "samples_per_unit": 32, "batch_size": 32},
    "evaluate": {"feature_size": 32, "train_pictures": 128, "chance_pictures": 16},
    # The tokenizer stays the same, so bits are comparable, and they scatter far less than distances of 64 samples.
    "publish": {"require": [{"metric": "bits_per_token_held_out", "direction": "lower"}]},
    "cluster": {"checkpoint_every": 10},
}


TINY: dict[str, Any] = {
    "shard": CONFIG["shard"] | {"samples_per_shard": 32},
    "tokenizer": SMALL["tokenizer"]
    | {"losses": {"perceptual_weight": 0.0, "discriminator": {"weight": 0.0}}, "policy": "keep"},
    "prior": SMALL["prior"] | {"policy": "warm", "warm_steps": 20},
    "sample": SMALL["sample"],
    "evaluate": SMALL["evaluate"],
    "publish": CONFIG["publish"],
    "cluster": SMALL["cluster"],
}
"""The same with models that learn next to nothing, and a quarter of the pictures."""


@dataclass
class Day:
    """What happened on a day."""

    what: str
    ran: list[str]
    reused: str
    verdict: str
    champion: int | None
    seconds: float


@dataclass
class Week:
    """A folder of pictures that grows, and a workdir that is retrained."""

    home: Path
    runtime: str
    arriving: Iterator[Path]
    share: float = 1.0
    """Of the pictures that arrive."""
    days: list[Day] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def workdir(self) -> Path:
        return self.home / "runs"

    @property
    def registry(self) -> Registry:
        return Registry.read(Folder.at(self.workdir))

    def arrive(self, count: int, corrupt: int = 0) -> None:
        """Copy the next emoji into the folder, each below its class; of the last ones only the first half."""
        count = round(count * self.share)
        for number in range(count):
            path = next(self.arriving)
            target = self.home / "pictures" / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            source = (emoji_folder() / path.name).read_bytes()
            target.write_bytes(source if number < count - corrupt else source[: len(source) // 2])

    def command(self, *more: str) -> list[str]:
        where = ["--config", str(self.home / "week.yaml"), "--workdir", str(self.workdir)]
        return [*COMMAND, *where, "--runtime", self.runtime, "--no-tracking", *more]

    def retrain(
        self, what: str, expected: set[str], *overrides: str, verdict: str = "champion", kill: str = ""
    ) -> None:
        """Run a day; with `kill`, kill it at the first progress of that stage and start it again."""
        before, units = self.registry, hashes(self.workdir)
        started, text = time.monotonic(), ""
        if kill:
            text += killed_at(self.command(*overrides), f"{kill}: ")
        done = subprocess.run(self.command(*overrides), cwd=ROOT, capture_output=True, text=True, check=False)
        seconds, text = time.monotonic() - started, text + done.stdout
        ran = [line.split(":")[0] for line in text.splitlines() if ": runs, " in line]
        after = self.registry
        new = after.versions[len(before.versions) :]
        told = new[0].verdict if new else "-"
        self.days.append(Day(what, list(dict.fromkeys(ran)), self.reused(ran), told, after.champion, seconds))
        self.show()
        self.demand(done.returncode == 0, f"it ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
        self.demand(set(ran) == expected, f"{sorted(expected)} should have run, not {sorted(set(ran))}")
        self.demand(bool(expected) or "nothing to do" in text, "it should have had nothing to do")
        self.demand(len(new) == bool(expected), f"{len(new)} versions were registered")
        for version in new:
            self.demand(version.verdict == verdict, f"the verdict is {version.verdict}: {' '.join(version.reasons)}")
            self.demand(version.incumbent == before.champion, f"it was judged against {version.incumbent}")
            wanted = version.number if verdict == "champion" else before.champion
            self.demand(after.champion == wanted, f"the champion is {after.champion}, not {wanted}")
        now = hashes(self.workdir)
        changed = [name for name, state in units.items() if now.get(name) != state]
        self.demand(not changed, f"units of earlier days were written again: {changed[:3]}")

    def reused(self, ran: Sequence[str]) -> str:
        """Units of the stages that ran, and how many of them were there before."""
        manifests = [manifest(self.workdir, stage) for stage in dict.fromkeys(ran) if stage in REUSED]
        if not manifests:
            return "-"
        reused = sum(it["notes"]["units_reused"] for it in manifests)
        return f"{reused} of {sum(len(it['units']) for it in manifests)}"

    def demand(self, held: bool, complaint: str) -> None:
        if not held:
            self.complaints.append(f"day {len(self.days)}: {complaint}")
            print(f"    WRONG: {complaint}", flush=True)

    def show(self) -> None:
        day = self.days[-1]
        stages = "all" if set(day.ran) == ALL else ", ".join(day.ran) or "none"
        row = f"{len(self.days):3} {day.what:28}{stages:66}{day.reused:>10}  {day.verdict:12}{day.champion!s:>8}"
        print(f"{row}{day.seconds:9.1f}", flush=True)


def emoji_in_order() -> Iterator[Path]:
    """CLASS/FILE of all emoji without skin variants, so mixed that every class has some among the first."""
    pictures = emoji_pictures(list(emoji_files(skin_variants=False)), skin_variants=False)
    return iter(sorted((Path(it.label) / it.path for it in pictures), key=lambda path: _mixed(path.name)))


def _mixed(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def hashes(workdir: Path) -> dict[str, tuple[str, int]]:
    """sha256 and time of writing of every file of the units that must stay."""
    files = [path for stage in REUSED for path in sorted((workdir / "units" / stage).rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(workdir)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in files
    }


def manifest(workdir: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workdir / stage / "latest/manifest.json").read_text())
    return found


def killed_at(command: list[str], sign: str) -> str:
    """Start it, kill it without warning when a line of progress begins with `sign`; return what it said."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if line.startswith(sign) and "/" in line.partition(sign)[2].split(" ")[0]:
            process.kill()
            break
    process.wait()
    return "".join(said)


def live(week: Week) -> None:
    """The seven days."""
    week.arrive(500)
    week.retrain("first pictures", ALL)
    week.arrive(120)
    week.retrain("new pictures", RETRAINED)
    week.retrain("nothing new", set())
    week.arrive(120, corrupt=5)
    week.retrain("new pictures, 5 corrupt", RETRAINED)
    rejects = manifest(week.workdir, "shard")["metrics"]["rejects"]
    week.demand(rejects == 5, f"{rejects} pictures were rejected, 5 are corrupt")
    week.arrive(60)
    worse = ("prior.learning_rate=0.5", "prior.min_learning_rate=0.4")
    week.retrain("new, bad learning rate", RETRAINED, *worse, verdict="challenger")
    week.arrive(60)
    week.retrain("new, killed half way", RETRAINED, kill="prior")
    champion, before = week.registry.champion, week.registry.before_champion
    done = subprocess.run(week.command("--rollback"), cwd=ROOT, capture_output=True, text=True, check=False)
    print(f"    {done.stdout.strip()}")
    week.arrive(60)
    week.demand(week.registry.champion == before != champion, f"the rollback led to {week.registry.champion}")
    week.retrain("rolled back, new pictures", RETRAINED)
    inherited = manifest(week.workdir, "prior")["recipe"]["inputs"]["checkpoint"]
    parent = week.registry.version(before or 0).artifacts["prior"]
    digest = json.loads((week.workdir / "prior" / parent[:12] / "manifest.json").read_text())["digest"]
    week.demand(inherited == digest, "it did not start from the prior that the rollback led to")


def main() -> int:
    """Live a week, print it, say whether all was well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a quarter of the pictures, models that learn little")
    parser.add_argument("--runtime", choices=("local", "ray"), default="local")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder for pictures and results, to stay")
    options = parser.parse_args()
    home = options.keep or Path(tempfile.mkdtemp(prefix="smalti-week-"))
    home.mkdir(parents=True, exist_ok=True)
    config, source = TINY if options.small else CONFIG, {"source": {"kind": "folder", "path": str(home / "pictures")}}
    (home / "week.yaml").write_text(yaml.safe_dump({**config, "shard": {**config["shard"], **source}}))
    started = time.monotonic()
    heads = f"{'day':3} {'what':28}{'stages run':66}{'reused':>10}  {'verdict':12}{'champion':>8}{'seconds':>9}"
    print(heads, flush=True)
    try:
        week = Week(home, options.runtime, emoji_in_order(), 0.25 if options.small else 1.0)
        live(week)
    finally:
        if not options.keep:
            shutil.rmtree(home, ignore_errors=True)
    wrong = f"{len(week.complaints)} things WRONG" if week.complaints else "all as it must be"
    print(f"a week in {(time.monotonic() - started) / 60:.1f} minutes: {wrong}")
    return int(bool(week.complaints))


if __name__ == "__main__":
    sys.exit(main())
