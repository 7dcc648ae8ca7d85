"""Registers a published bundle with MLflow and draws with it: in a fresh process, and through `mlflow models serve`.

    python -m tests.serve_model PLACE [--out FOLDER] [--seed 3] [--seconds 300]

PLACE is a workdir whose stage publish has finished, or a bundle. Everything is written below `--out` (default: a
folder that is removed): the registry (SQLite), and the same picture three times: drawn by `Generator` (generator.png),
by `models:/NAME@champion` in a process that does not see this checkout (pyfunc.png), and by a server on a free port of
the loopback that is asked with POST /invocations (served.png). Prints a table and, last, one line of JSON; ends with 1
if a picture differs.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.storage import Folder
from pipeline.versions.checksums import SUMS
from pipeline.versions.model_registry import CHAMPION, ModelRegistry

NAME = "smalti"
LOAD = """
import json, sys
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
import stages
table = model.predict(pd.DataFrame(json.loads(sys.argv[2])))
print(json.dumps({"code": stages.__file__, "rows": table.to_dict(orient="records")}))
"""


@dataclass
class Proof:
    """What was seen."""

    version: int
    seconds: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    code: str = ""
    """From where the fresh process imported the model's code."""
    refusal: str = ""
    """What the server answers to a class that there is not."""

    @property
    def same(self) -> bool:
        """Whether all pictures are the same, bit for bit."""
        first, *others = self.pictures.values()
        return all(np.array_equal(first, other) for other in others)


def prove(place: Path, out: Path, *, seed: int = 3, limit: float = 300) -> Proof:
    """Register, load and serve; write the pictures below `out`."""
    bundle = place if (place / SUMS).exists() else place / "publish" / "latest" / "bundle"
    if not (bundle / SUMS).exists():
        raise SystemExit(f"{place} is no bundle, and no workdir that has published: run --stages all first")
    out.mkdir(parents=True, exist_ok=True)
    uri, started, said = f"sqlite:///{out.resolve()}/mlflow.db", time.monotonic(), list[str]()
    registry = ModelRegistry(uri, NAME, NAME, Folder.at(out / "mlflow"), said.append)
    version = registry.register(Folder.at(bundle.resolve()), "a proof", {})
    assert version is not None, said
    assert registry.set_alias(CHAMPION, version), said
    proof = Proof(version, {"register": time.monotonic() - started})
    rows = [{**json.loads((bundle / "serving.json").read_bytes())["example"], "seed": seed}]
    proof.pictures["generator"] = _by_generator(bundle, rows[0])
    _in_a_fresh_process(proof, uri, rows, out)
    with serving(uri, f"models:/{NAME}@{CHAMPION}", out / "server.log", limit) as (address, seconds):
        proof.seconds["serve: until it answers"] = seconds
        started = time.monotonic()
        answer = ask(address, rows)
        proof.seconds["serve: a request"] = time.monotonic() - started
        proof.pictures["served"] = _decoded(answer["predictions"][0]["png"])
        try:
            ask(address, [{"label": "no such class", "seed": seed}])
        except urllib.error.HTTPError as error:
            proof.refusal = f"{error.code}: {json.loads(error.read())['message']}"
    for name, picture in proof.pictures.items():
        Image.fromarray(picture).save(out / f"{name}.png")
    return proof


def _by_generator(bundle: Path, row: dict[str, Any]) -> np.ndarray:
    from stages.sampling.generator import Generator

    return np.asarray(Generator.load(bundle).generate(**row)[0])


def _in_a_fresh_process(proof: Proof, uri: str, rows: list[dict[str, Any]], elsewhere: Path) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", LOAD, f"models:/{NAME}@{CHAMPION}", json.dumps(rows)],
        cwd=elsewhere,
        env=_environment(uri),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    proof.seconds["fresh process"] = time.monotonic() - started
    proof.code = answer["code"]
    proof.pictures["pyfunc"] = _decoded(answer["rows"][0]["png"])


@contextlib.contextmanager
def serving(uri: str, model: str, log: Path, limit: float) -> Iterator[tuple[str, float]]:
    """Yield the address of `mlflow models serve` and the seconds until it answered; it is ended afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["-m", "mlflow", "models", "serve", "-m", model, "-h", "127.0.0.1", "-p", str(port)]
    started = time.monotonic()
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, *command, "--env-manager", "local"],
            cwd=log.parent,
            env=_environment(uri),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its workers end with it
        )
    address = f"http://127.0.0.1:{port}"
    try:
        while not _answers(address):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() - started < limit, f"no answer in {limit} s: {log.read_text()}"
            time.sleep(0.5)
        yield address, time.monotonic() - started
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def ask(address: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """POST a table to /invocations. Raises HTTPError where the server refuses it."""
    body = json.dumps({"dataframe_records": rows}).encode()
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/ping", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _environment(uri: str) -> dict[str, str]:
    """That of a process which knows the registry and nothing of this checkout."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return kept | quiet | {"MLFLOW_TRACKING_URI": uri, "PATH": path}


def _decoded(text: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as picture:
        return np.asarray(picture)


def main() -> None:
    """Prove it and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", type=Path, metavar="PLACE")
    parser.add_argument("--out", type=Path, help="default: a folder that is removed")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=300, help="until the server must answer")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        out = args.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        proof = prove(args.place, out, seed=args.seed, limit=args.seconds)
        print(f"version           {proof.version}")
        print(f"code of the model {proof.code}")
        for name, seconds in proof.seconds.items():
            print(f"{name:26}{seconds:8.1f} s")
        print(f"unknown class     {proof.refusal}")
        print(f"pictures          {', '.join(proof.pictures)}: {'the same' if proof.same else 'DIFFERENT'}, in {out}")
    rounded = {name: round(seconds, 1) for name, seconds in proof.seconds.items()}
    print(json.dumps({"version": proof.version, "same": proof.same, "seconds": rounded}))
    sys.exit(0 if proof.same else 1)


if __name__ == "__main__":
    main()
