"""Runs the smoke version of every config, or of those named; prints the seconds of each, those of CPUs, its exit code.

    python -m tests.smoke [emoji_text superres ...]

Each runs from nothing in one process and a folder of its own that is removed; of one that fails the end of what it
said is printed. The exit code is the number of those that failed.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.small import COMMAND, ROOT

CONFIGS = {path.stem: path for path in sorted((ROOT / "configs").glob("*.yaml"))}


def run_smoke(name: str, workdir: Path) -> subprocess.CompletedProcess[str]:
    """Run the smoke version of a config to the end."""
    arguments = ["--config", str(CONFIGS[name]), "--smoke", "--workdir", str(workdir)]
    return subprocess.run(
        [*COMMAND, *arguments, "--runtime", "local", "--no-tracking"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def cpu_seconds() -> float:
    """What the processes that have ended spent."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    """Run them one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CONFIGS))
    names = parser.parse_args().names or list(CONFIGS)
    unknown = sorted(set(names) - set(CONFIGS))
    if unknown:
        parser.error(f"there is no config {', '.join(unknown)}: choose of {', '.join(CONFIGS)}")
    print(f"{'config':24}{'seconds':>8}{'of CPUs':>9}{'exit code':>11}")
    failures = 0
    for name in names:
        with tempfile.TemporaryDirectory(prefix="smalti-smoke-") as folder:
            started, spent = time.monotonic(), cpu_seconds()
            done = run_smoke(name, Path(folder))
        seconds, spent = time.monotonic() - started, cpu_seconds() - spent
        print(f"{name:24}{seconds:8.0f}{spent:9.0f}{done.returncode:11}", flush=True)
        if done.returncode:
            failures += 1
            print((done.stdout + done.stderr)[-3000:], file=sys.stderr)
    return failures


if __name__ == "__main__":
    sys.exit(main())
