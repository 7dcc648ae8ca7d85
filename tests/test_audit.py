"""The audit calls nothing safe that it could not check."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.audit import NOTORIOUS, YANKED, audit, check_pins, check_refused, check_vulnerabilities, read_lock
from tests.small import ROOT

HASH = "--hash=sha256:" + "0" * 64
LOCK = (
    f"numpy==2.1.0 ; python_version < '3.12' \\\n    {HASH} \\\n    {HASH}\n    # via us\ntorch==2.9.0 \\\n    {HASH}\n"
)


def world(*, yanked: Sequence[str] = (), vulnerable: Sequence[str] = (), silent: bool = False, blind: bool = False):
    """Return a stand-in for the commands: an index and a service that know of these releases, or of nothing."""

    def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        asked = Path(command[-1]).read_text()
        names = [line.split(" ")[0] for line in asked.splitlines() if "==" in line]
        if "pip_audit" in command:
            known = () if blind else (*vulnerable, NOTORIOUS)
            rows: list[dict[str, Any]] = []
            for name, _, version in (it.partition("==") for it in names):
                hit = [{"id": "CVE-1", "fix_versions": []}] if f"{name}=={version}" in known else []
                skipped: dict[str, Any] = {"name": name, "skip_reason": "not found"}
                rows.append(skipped if silent else {"name": name, "version": version, "vulns": hit})
            return subprocess.CompletedProcess([], 0, json.dumps({"dependencies": rows}), "No known vulnerabilities")
        known = () if blind else (*yanked, YANKED)
        said = "".join(f'warning: `{it}` is yanked (reason: "r")\n' for it in names if it in known)
        return subprocess.CompletedProcess([], 0, "", said)

    return run


def outcomes(tmp_path: Path, text: str = LOCK, **how: Any) -> dict[str, bool | None]:
    lock = tmp_path / "lock"
    lock.write_text(text)
    return {finding.check: finding.passed for finding in audit(lock, "uv", world(**how))}


def test_a_clean_lock_passes_where_index_and_service_answer(tmp_path):
    assert set(outcomes(tmp_path).values()) == {True}


def test_yanked_and_vulnerable_releases_fail(tmp_path):
    found = outcomes(tmp_path, yanked=["torch==2.9.0"], vulnerable=["numpy==2.1.0"])
    assert [check for check, passed in found.items() if passed is False] == [
        "no yanked release",
        "no known vulnerability",
    ]


@pytest.mark.parametrize("how", [{"silent": True}, {"blind": True}])
def test_a_service_that_knows_nothing_makes_nothing_safe(tmp_path, how):
    assert outcomes(tmp_path, **how)["no known vulnerability"] is None


def test_a_command_that_fails_makes_nothing_safe(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text(LOCK)

    def broken(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "no route")

    found = {finding.check: finding.passed for finding in audit(lock, "uv", broken)}
    assert found["no yanked release"] is None and found["no known vulnerability"] is None


def test_a_package_that_the_service_does_not_know_leaves_the_check_undone(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text(LOCK)
    full = world()

    def forgetful(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        done = full(command)
        if "pip_audit" in command:
            answer = json.loads(done.stdout)
            answer["dependencies"] = [
                {"name": it["name"], "skip_reason": "?"} if it["name"] == "torch" else it
                for it in answer["dependencies"]
            ]
            done.stdout = json.dumps(answer)
        return done

    finding = check_vulnerabilities(lock, forgetful)
    assert finding.passed is None and finding.details == ("not known to the service: torch",)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("torch==2.9.0", "without a sha256"),
        ("torch==2.9.0 --hash=md5:0", "without a sha256"),
        (f"torch>=2.9.0 {HASH}", "not pinned"),
        (f"torch==2.9.* {HASH}", "not pinned"),
        ("--index-url https://packages.example", "an option or an address"),
        (f"torch @ https://packages.example/torch.whl {HASH}", "an option or an address"),
        ("torch=2", "no requirement"),
    ],
)
def test_what_is_not_pinned_by_hash_fails(line, complaint):
    finding = check_pins(*read_lock(f"{LOCK}{line}\n"))
    assert finding.passed is False
    assert finding.details[0].startswith(complaint)


@pytest.mark.parametrize(
    ("name", "version", "passed"),
    [
        ("lightning", "2.6.2", False),
        ("Lightning", "2.6.3", False),
        ("lightning", "2.6.4", True),
        ("lightning-fabric", "2.6.3", False),
        ("lightning-fabric", "2.6.4", True),
        ("lightning-utilities", "0.1", True),
    ],
)
def test_malicious_releases_are_refused(name, version, passed):
    assert check_refused(read_lock(f"{name}=={version} {HASH}\n")[0]).passed is passed


def test_our_own_lock_is_pinned_by_hash_and_holds_no_refused_release():
    pinned, complaints = read_lock((ROOT / "requirements.lock").read_text())
    assert len(pinned) > 100
    assert check_pins(pinned, complaints).passed and check_refused(pinned).passed
