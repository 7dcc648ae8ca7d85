"""Opens every hostile file as a run would, each in a child process of its own with limited memory and time.

    python -m tests.hostile_corpus [--only WORD] [--fast]

prints file, outcome, exit code, seconds and peak memory; ends with 1 if any outcome is not the one it must be, if
anything was executed, or if a file appeared outside.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from pipeline.errors import UserError
from stages.data.images import Rejected
from tests.hostile import configs, lists, models, pictures, shards
from tests.hostile.case import Hostile
from tests.isolated import Outcome, run_isolated

CORPUS: dict[str, Sequence[Hostile]] = {
    "picture": pictures.CASES,
    "list": lists.CASES,
    "config": configs.CASES,
    "model": models.CASES,
    "shard": shards.CASES,
}
DOCUMENTED = (UserError, Rejected, RuntimeError)  # RuntimeError: `load_state`, whose caller knows it


def complaint(case: Hostile, outcome: Outcome, left: Sequence[Path]) -> str:
    """What is wrong with an outcome; nothing if it is as it must be. `left`: what appeared beside the case's folder."""
    said = f"{outcome.verdict} {outcome.message}"
    if not re.match(case.expected, said, re.DOTALL):
        return f"expected {case.expected}"
    if outcome.peak_mb > case.most_mb:
        return f"took {outcome.peak_mb:.0f} MB, {case.most_mb:.0f} are allowed"
    return f"left {', '.join(map(str, left))}" if left else ""


def open_all(cases: Sequence[Hostile], seconds: float) -> Iterator[tuple[Hostile, Outcome, str]]:
    """Open each case in a child of its own."""
    for case in cases:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "case"
            folder.mkdir()
            case.write(folder)
            (outcome,) = run_isolated([lambda case=case, at=folder: case.read(at)], DOCUMENTED, seconds=seconds)
            left = [path for path in Path(name).iterdir() if path != folder]
            yield case, outcome, complaint(case, outcome, left)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose kind or name holds this word")
    parser.add_argument("--fast", action="store_true", help="leave out what takes more than a moment")
    parser.add_argument("--seconds", type=float, default=120.0, help="a case that takes longer hangs")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked child has no threads but its own
    wrong = total = 0
    worst = 0.0
    for kind, cases in CORPUS.items():
        chosen = [case for case in cases if options.only in f"{kind} {case.name}" and not (options.fast and case.slow)]
        for case, outcome, problem in open_all(chosen, options.seconds):
            total, wrong, worst = total + 1, wrong + bool(problem), max(worst, outcome.peak_mb)
            said = re.sub(r"/tmp/\S*/case/", "", outcome.message).splitlines()[0][:90] if outcome.message else ""
            print(
                f"{'WRONG ' if problem else ''}{kind:8}{case.name:44.44} {outcome.verdict:9}{said:90} "
                f"exit {outcome.exit_code} {outcome.seconds:6.2f} s {outcome.peak_mb:5.0f} MB {problem}",
                flush=True,
            )
    print(
        f"{total} files, {wrong} with an outcome that must not be; most memory {worst:.0f} MB; nothing was executed"
        if not wrong
        else f"{total} files, {wrong} with an outcome that must not be"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
