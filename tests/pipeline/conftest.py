from pathlib import Path

import pytest


@pytest.fixture
def numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of five files holding 0..4."""
    folder = tmp_path / "numbers"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.txt").write_text(str(i))
    monkeypatch.setenv("TOY_FOLDER", str(folder))
    return folder
