"""What may happen to a run besides a full disk: signals, a second driver, edits under its feet, memory, the clock.

    python -m tests.faults.moments [--only CASE,...]

Each case starts a small pipeline, does its worst at a moment that is waited for, and checks the exit code, the words,
and that in the end the bytes are those of a calm run. Prints a table; the exit code is 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.driver import Driver, preload
from tests.faults.experiment import Experiment, restore
from tests.faults.stage_kills import MEMORY
from tests.kill_and_resume import digests

Verdict = tuple[str, list[str]]
"""What was seen, for the table, and what was wrong with it."""


def wait_for(what: Callable[[], bool], driver: Driver) -> None:
    """Wait until it is so, or the run has ended."""
    while driver.poll() is None and not what():
        time.sleep(0.002)


def begin(experiment: Experiment, stage: str, name: str) -> Path:
    """A workdir in which all before a stage is finished."""
    workdir = experiment.folder / name
    restore(experiment.before(stage), workdir)
    return workdir


def checkpoints(workdir: Path, stage: str) -> list[str]:
    """The checkpoints of a training that are there."""
    return sorted(path.name for path in workdir.glob(f"checkpoints/{stage}/*/step-*"))


def seen(driver: Driver) -> str:
    """The exit code and the line that explains it."""
    lines = [line for line in driver.text.splitlines() if line.startswith(("error: ", "terminated", "interrupted"))]
    return f"{driver.code} {lines[-1] if lines else ''}".strip()


def expect(condition: bool, complaint: str) -> list[str]:
    """A complaint, unless the condition holds."""
    return [] if condition else [complaint]


def same_end(experiment: Experiment, workdir: Path, stage: str) -> list[str]:
    """Run the same command again and compare with the calm run."""
    again = experiment.run(workdir, "--stages", stage)
    if again.code:
        return [f"the same command ended with {again.code}: {again.text[-1000:]}"]
    same = digests(workdir, (stage,))[stage] == experiment.digests[stage]
    return [*experiment.wrong(workdir), *expect(same, "another digest than a calm run's")]


def sigterm(experiment: Experiment) -> Verdict:
    """SIGTERM in training: a checkpoint of the step it was at, exit code 143."""
    workdir = begin(experiment, "tokenizer", "sigterm")
    driver = experiment.start(workdir, "--stages", "tokenizer", "cluster.checkpoint_every=1000")
    wait_for(lambda: "tokenizer: 1/" in driver.text, driver)
    driver.send(signal.SIGTERM)
    driver.wait()
    kept = checkpoints(workdir, "tokenizer")
    wrong = expect(driver.code == 143, f"exit code {driver.code}") + expect(len(kept) == 1, f"checkpoints {kept}")
    return f"{seen(driver)}, {kept}", wrong + same_end(experiment, workdir, "tokenizer")


def sigterm_twice(experiment: Experiment) -> Verdict:
    """A second SIGTERM does not wait for a safe point."""
    workdir = begin(experiment, "shard", "twice")

    def never_safe() -> None:
        import stages.data.packing

        stages.data.packing.prepare = lambda *arguments: time.sleep(3600)

    driver = experiment.start(workdir, "--stages", "shard", before=never_safe)
    wait_for(lambda: any(workdir.glob("units/shard/.tmp-*/*")), driver)
    driver.send(signal.SIGTERM)
    first = driver.wait(1.0)
    driver.send(signal.SIGTERM)
    started = time.monotonic()
    driver.wait(60)
    wrong = expect(first is None, "the first one did not wait") + expect(driver.code == 143, f"exit code {driver.code}")
    driver.kill()
    text = f"{seen(driver)}, {time.monotonic() - started:.1f} s after the second"
    return text, wrong + same_end(experiment, workdir, "shard")


def stopped(experiment: Experiment) -> Verdict:
    """SIGSTOP, a second driver meanwhile, SIGCONT: the second is refused, the first goes on."""
    workdir = begin(experiment, "prior", "stopped")
    driver = experiment.start(workdir, "--stages", "prior")
    wait_for(lambda: bool(checkpoints(workdir, "prior")), driver)
    driver.send(signal.SIGSTOP)
    other = experiment.start(workdir, "--stages", "prior", log="second.log")
    other.wait()
    refusal = seen(other)
    driver.send(signal.SIGCONT)
    driver.wait()
    wrong = expect(other.code == 75 and f"process {driver.pid}" in refusal, f"the second driver: {refusal}")
    wrong += expect(driver.code == 0, f"the first ended with {driver.code}")
    return refusal, wrong + same_end(experiment, workdir, "prior")


def config_edited(experiment: Experiment) -> Verdict:
    """The config changes during a run, which goes on with what it read; the next run says which key changed."""
    workdir, text = begin(experiment, "prior", "edited"), experiment.config.read_text()
    driver = experiment.start(workdir, "--stages", "prior")
    wait_for(lambda: bool(checkpoints(workdir, "prior")), driver)
    experiment.config.write_text(text.replace("warmup_steps: 5", "warmup_steps: 6"))
    driver.wait()
    plan = experiment.run(workdir, "--stages", "prior", "--dry-run")
    experiment.config.write_text(text)
    named = "prior.warmup_steps 5 -> 6"
    wrong = expect(driver.code == 0, f"exit code {driver.code}") + expect(named in plan.text, plan.text[-500:])
    return f"{driver.code}, then: {named}", wrong + same_end(experiment, workdir, "prior")


def source_edited(experiment: Experiment) -> Verdict:
    """A picture is removed, and one is changed, between listing and packing."""
    workdir = begin(experiment, "shard", "source")
    pictures = sorted((experiment.folder / "pictures").rglob("*.png"))
    texts, wrong = [], []
    for change in ("gone", "changed while"):
        kept = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in pictures}

        def strike(change: str = change) -> None:
            import stages.data.packing

            plain = stages.data.packing.write_shard

            def late(*arguments: object) -> object:
                for path in pictures:
                    path.unlink() if change == "gone" else path.write_bytes(path.read_bytes()[:-1] + b"\1")
                return plain(*arguments)  # type: ignore[arg-type]

            stages.data.packing.write_shard = late  # type: ignore[assignment]

        driver = experiment.run(workdir, "--stages", "shard", before=strike)
        texts.append(seen(driver).replace(str(experiment.folder), ""))
        wrong += expect(
            driver.code == 3 and change in driver.text and "Traceback" not in driver.text, driver.text[-800:]
        )
        for path, (data, modified) in kept.items():
            path.write_bytes(data)
            import os

            os.utime(path, ns=(modified, modified))
    return "; ".join(texts), wrong + same_end(experiment, workdir, "shard")


def clock(experiment: Experiment) -> Verdict:
    """The clock jumps back a day at every look."""
    workdir = begin(experiment, "prior", "clock")

    def jumping() -> None:
        real, looks = time.time, iter(range(10**9))
        time.time = lambda: real() - 86400 * next(looks)

    driver = experiment.run(workdir, "--stages", "prior", before=jumping)
    return seen(driver), expect(driver.code == 0, driver.text[-1000:]) + same_end(experiment, workdir, "prior")


def memory(experiment: Experiment) -> Verdict:
    """A batch that does not fit into the memory the process may have."""
    texts, wrong = [], []
    for stage, key in (("tokenizer", "tokenizer.batch_size"), ("encode", "encode.batch_size")):
        workdir = begin(experiment, stage, "memory")

        def limit() -> None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            room = pages * resource.getpagesize() + 300 * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (room, room))

        driver = experiment.run(workdir, "--stages", stage, f"{key}=200000", before=limit)
        texts.append(seen(driver))
        wrong += expect(driver.code == 1 and f"{key} (now 200000)" in driver.text, driver.text[-1500:])
        wrong += expect("Traceback" not in driver.text, "a traceback") + same_end(experiment, workdir, stage)
    return "; ".join(texts), wrong


CASES = {
    "SIGTERM": sigterm,
    "SIGTERM twice": sigterm_twice,
    "two drivers": stopped,
    "config edited": config_edited,
    "source edited": source_edited,
    "clock jumps": clock,
    "out of memory": memory,
}


def main() -> int:
    """Try all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CASES))
    options = parser.parse_args()
    preload()
    bad = 0
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None, prefix="smalti-moments-") as name:
        experiment = Experiment(Path(name))
        experiment.run_calmly()
        for case in options.only.split(","):
            text, wrong = CASES[case](experiment)
            print(f"{case:22}{'WRONG' if wrong else 'as promised':12} {text[:200]}", *wrong, sep="\n    ", flush=True)
            bad += bool(wrong)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
