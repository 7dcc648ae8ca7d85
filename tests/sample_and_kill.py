"""Draws samples of a finished run, is killed several times, goes on, asks for more, and counts.

    python -m tests.sample_and_kill RUN --first 2000 --then 3000 --kills 3

RUN is the workdir of a run with a finished prior by class; it is read, never written to. Prints how many units were
drawn and found again, and whether the pictures are those of an uninterrupted run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from pipeline.storage import Folder
from pipeline.units import Unit, UnitStore
from pipeline.workdir import Workdir
from stages.sample import SampleConfig, sample

DRAWN = "drawn.txt"
"""A line for each unit that a worker began or finished, in the workdir."""


class Announcing:
    """A runtime of this process that writes down which units it draws."""

    def __init__(self, place: Path) -> None:
        self.runtime, self.place = LocalRuntime(), place

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runtime, name)

    def map_units(self, store: UnitStore, make_worker: Any, units: Sequence[Unit], reporter: Any, **how: Any) -> Any:
        """Draw the units one after another."""
        worker = make_worker("cpu")
        for unit in units:
            announce(self.place, f"began {unit.name}")
            record = store.make(unit, worker)
            announce(self.place, f"drew {unit.name}")
            yield record


def announce(place: Path, line: str) -> None:
    """Write a line down at once, whoever else does."""
    with (place / DRAWN).open("a") as file:
        file.write(line + "\n")


def inputs_of(run: Path) -> dict[str, Artifact]:
    """The tokenizer and prior of a finished run."""
    made = {name: Workdir(Folder.at(run)).made_last(name) for name in ("tokenizer", "prior")}
    missing = [name for name, artifact in made.items() if artifact is None]
    if missing:
        raise SystemExit(f"{run} has no finished {' and '.join(missing)}: name the workdir of a finished run")
    return {name: artifact for name, artifact in made.items() if artifact is not None}


def draw(inputs: dict[str, Artifact], place: Path, config: SampleConfig) -> Artifact:
    """Run the sample stage in a workdir of its own."""
    place.mkdir(parents=True, exist_ok=True)
    stage = Stage("sample", sample, config, inputs)  # type: ignore[arg-type]
    return run_stage(stage, inputs, str(place), Announcing(place))  # type: ignore[arg-type]


def kill_after(inputs: dict[str, Artifact], place: Path, config: SampleConfig, units: int, seconds: float) -> None:
    """Start the stage in a process and kill it `seconds` after it has drawn so many units."""
    process = multiprocessing.get_context("spawn").Process(target=draw, args=(inputs, place, config))
    before = len(lines(place, "drew"))
    process.start()
    while process.is_alive() and len(lines(place, "drew")) < before + units:
        time.sleep(0.005)
    time.sleep(seconds)
    if process.is_alive():
        os.kill(process.pid or 0, signal.SIGKILL)
    process.join()


def lines(place: Path, word: str) -> list[str]:
    """The units that were begun or drawn so far."""
    path = place / DRAWN
    return [line.split()[1] for line in path.read_text().splitlines() if line.startswith(word)] if path.exists() else []


def drawn_and_killed(
    inputs: dict[str, Artifact], folder: Path, config: SampleConfig, then: int, kills: int, seed: int
) -> dict[str, Any]:
    """Draw `config.num_samples` with kills in between, then up to `then`; compare with an uninterrupted run."""
    luck, killed = random.Random(seed), folder / "killed"
    units = -(-config.num_samples // config.samples_per_unit)
    for _ in range(kills):
        kill_after(inputs, killed, config, luck.randint(1, max(1, units // (kills + 1))), luck.uniform(0, 0.3))
    lost = len(lines(killed, "began")) - len(lines(killed, "drew"))
    before = len(lines(killed, "drew"))
    first = draw(inputs, killed, config)
    more = draw(inputs, killed, config.model_copy(update={"num_samples": then}))
    calm = draw(inputs, folder / "calm", config.model_copy(update={"num_samples": then}))
    drew = lines(killed, "drew")
    return {
        "drawn_before_the_last_start": before,
        "killed_in_the_middle": lost,
        "reused_by_the_last_start": first.notes["units_reused"],
        "reused_by_more": more.notes["units_reused"],
        "units_of_first": len(first.units),
        "units_of_more": len(more.units),
        "drawn": len(drew),
        "drawn_twice": len(drew) - len(set(drew)),
        "equal": more.digest == calm.digest,
    }


def main() -> int:
    """Draw, kill, draw more, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--first", type=int, default=2000)
    parser.add_argument("--then", type=int, default=3000)
    parser.add_argument("--samples-per-unit", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    config = SampleConfig(
        num_samples=options.first, samples_per_unit=options.samples_per_unit, batch_size=options.batch_size
    )
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        found = drawn_and_killed(inputs_of(options.run), Path(name), config, options.then, options.kills, options.seed)
    found["seconds"] = round(time.monotonic() - started, 1)
    print(*(f"{key:28} {value}" for key, value in found.items()), sep="\n")
    print(json.dumps(found))
    return int(not found["equal"] or found["drawn_twice"] > 0)


if __name__ == "__main__":
    sys.exit(main())
