"""How long a run takes that has nothing to do, and which heavy packages it imported (none should be).

Finishes a small pipeline in a temporary workdir, then times the same command again as whole processes.
The last line is JSON: `seconds` is the median, under 2 is the aim.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.pictures import draw_pictures
from tests.small import COMMAND, small_config

RUNS = 7
HEAVY = ("ray", "torch", "mlflow", "lightning_fabric", "webdataset", "pyarrow", "numpy", "PIL", "matplotlib", "fsspec")
REPORT_IMPORTS = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported:", *[name for name in {heavy!r} if name in sys.modules])
"""


def main() -> None:
    """Measure, print a table and the JSON line."""
    with tempfile.TemporaryDirectory() as folder:
        draw_pictures(Path(folder) / "pictures", 80)
        arguments = ["--workdir", f"{folder}/runs", "--config", str(small_config(Path(folder)))]
        local = ["--runtime", "local", "--no-tracking"]
        subprocess.run([*COMMAND, *arguments, *local], check=True, stdout=subprocess.DEVNULL)
        seconds = []
        for _ in range(RUNS):
            started = time.perf_counter()
            subprocess.run([*COMMAND, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
        script = REPORT_IMPORTS.format(heavy=HEAVY)
        told = subprocess.run(
            [sys.executable, "-c", script, COMMAND[1], *arguments], check=True, capture_output=True, text=True
        )
    imported = told.stdout.splitlines()[-1].removeprefix("imported:").split()
    print(told.stdout)
    print(f"seconds of {RUNS} runs: {', '.join(f'{value:.2f}' for value in sorted(seconds))}")
    print(f"of {', '.join(HEAVY)} it imported: {', '.join(imported) or 'none'}")
    print(json.dumps({"seconds": round(statistics.median(seconds), 3), "imported": imported}))


if __name__ == "__main__":
    main()
