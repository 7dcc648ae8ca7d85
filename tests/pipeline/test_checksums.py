"""SHA256SUMS: as coreutils writes and checks it, and refused where it lies."""

import shutil
import subprocess

import pytest

from pipeline.errors import DataError
from pipeline.storage import Folder, content_hash
from pipeline.versions.checksums import SUMS, check, copy_checked, read_sums, sums_text


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "bundle"
    (home / "prior").mkdir(parents=True)
    (home / "card with space.md").write_text("card")
    (home / "prior/model.bin").write_bytes(bytes(range(256)))
    hashes = {name: content_hash(home / name) for name in ("prior/model.bin", "card with space.md")}
    (home / SUMS).write_text(sums_text(hashes))
    (home / "manifest.json").write_text("{}")
    return home


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="coreutils are not installed")
def test_coreutils_check_what_we_list(folder):
    command = ["sha256sum", "--check", "--strict", SUMS]
    assert subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0
    check(folder)
    (folder / "prior/model.bin").write_bytes(b"other")
    assert subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 1
    with pytest.raises(DataError, match=r"model\.bin has sha256 d9298a10d1b0, SHA256SUMS says 40aff2e9d2d8"):
        check(folder)


def test_what_coreutils_list_we_read(folder):
    names = ["prior/model.bin", "card with space.md"]
    written = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, check=True).stdout
    (folder / SUMS).write_bytes(written)
    assert sorted(read_sums(Folder.at(folder))) == sorted(names)
    check(folder)


def test_a_copy_has_the_listed_files_alone(folder, tmp_path):
    copy_checked(Folder.at(folder), tmp_path / "copy")
    found = sorted(str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*.*"))
    assert found == ["card with space.md", "prior/model.bin"]
    check(tmp_path / "copy")
    (folder / "prior/model.bin").unlink()
    with pytest.raises(DataError, match=r"model\.bin is missing, though SHA256SUMS lists it"):
        copy_checked(Folder.at(folder), tmp_path / "other")


@pytest.mark.parametrize(
    "text", ["", "nonsense\n", f"{'a' * 64}  ../outside\n", f"{'a' * 64}  /etc/passwd\n", "\udcff"]
)
def test_a_list_that_is_none_is_refused(folder, text):
    (folder / SUMS).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match="publish again"):
        check(folder)


def test_a_folder_without_a_list_is_refused(tmp_path):
    with pytest.raises(DataError, match="name the folder that the stage publish made"):
        read_sums(Folder.at(tmp_path))
