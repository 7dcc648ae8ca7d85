"""Environments of their own for the packages that benchmarks compare with: what they need must not change ours."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def peer_environment(name: str, packages: Sequence[str], *, over_ours: bool = False) -> Path:
    """Install pinned `packages` into an environment of their own, once; return its python.

    With `over_ours` our packages are visible behind theirs, so that large ones (torch) are there once and in the same
    version, and nothing but `packages` is installed: name what they import and ours lacks. Environments are kept in
    the system's temporary folder, one for each list of packages.
    """
    wanted = hashlib.sha256("\n".join([sys.executable, str(over_ours), *packages]).encode()).hexdigest()[:8]
    folder = Path(tempfile.gettempdir()) / f"smalti-benchmark-{os.getuid()}" / f"{name}-{wanted}"
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    options = ["-q", *(["--no-deps"] if over_ours else []), *packages]
    uv = shutil.which("uv") or shutil.which("uv", path=str(ROOT / ".uv" / "bin"))
    if uv:
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True)
        # Elsewhere than in our folder: our overrides in pyproject.toml leave out packages that peers may want.
        subprocess.run([uv, "pip", "install", "--python", str(python), *options], check=True, cwd=folder)
    else:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", *options], check=True)
    if over_ours:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        ours = sysconfig.get_path("purelib")
        (folder / "lib" / version / "site-packages" / "ours.pth").write_text(f"{ours}\n")
    (folder / "complete").touch()
    return python
