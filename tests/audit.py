"""Audits the lock file: what it pins, what the package index says of it, what is known of its vulnerabilities.

    python -m tests.audit [--lock requirements.lock] [--uv uv]

Each check ends in passed, failed, or not done: a service that cannot be reached, or that does not know what everybody
knows (each is asked about one notorious release first), is no reason to call anything safe. Exit codes: 0 all passed,
1 something failed, 2 nothing failed but a check was not done.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

REFUSED = {
    "lightning": "==2.6.2, ==2.6.3",  # malicious releases
    "lightning-fabric": "<2.6.4",
}
"""Releases that must never be installed, whatever any service says; alternatives are separated by commas."""
NOTORIOUS = "pyyaml==5.3"
"""Executes code from a YAML file (CVE-2020-14343): a service that does not know it knows nothing."""
YANKED = "attrs==21.1.0"
"""A release that was yanked: an index that does not say so says nothing of others."""
SERVICES = ("pypi", "osv")
COPYLEFT = re.compile(r"\bA?GPL|GNU (Affero )?General Public", re.IGNORECASE)
COLUMNS = 118


@dataclass(frozen=True)
class Pinned:
    """One requirement of the lock file."""

    name: str
    version: str
    num_hashes: int
    line: str


@dataclass(frozen=True)
class Finding:
    """The outcome of a check: `passed` is None where it could not be done."""

    check: str
    passed: bool | None
    said: str
    details: tuple[str, ...] = ()


Run = Callable[[Sequence[str]], subprocess.CompletedProcess[str]]


def read_lock(text: str) -> tuple[list[Pinned], list[str]]:
    """Return the pinned requirements and a complaint for each line that is none or names an address."""
    pinned, complaints = [], []
    for line in map(str.strip, text.replace("\\\n", " ").splitlines()):
        if not line or line.startswith("#"):
            continue
        if line.startswith("-") or "://" in line:
            complaints.append(f"an option or an address: {line.split(' ')[0]}")
            continue
        specification, *hashes = line.split("--hash=")
        try:
            requirement = Requirement(specification)
        except InvalidRequirement:
            complaints.append(f"no requirement: {specification.strip()}")
            continue
        versions = [it.version for it in requirement.specifier if it.operator == "==" and "*" not in it.version]
        if len(versions) != 1:
            complaints.append(f"not pinned to one version: {specification.strip()}")
            continue
        good = [it for it in hashes if re.fullmatch(r"sha256:[0-9a-f]{64}", it.strip())]
        pinned.append(Pinned(requirement.name.lower(), versions[0], len(good), specification.strip()))
    return pinned, complaints


def check_pins(pinned: Sequence[Pinned], complaints: Sequence[str]) -> Finding:
    """Everything is pinned to one version with sha256 hashes, and no registry is named."""
    unhashed = [f"without a sha256: {it.line}" for it in pinned if not it.num_hashes]
    wrong = (*complaints, *unhashed)
    said = f"{len(pinned)} requirements, {sum(it.num_hashes for it in pinned)} hashes"
    return Finding("pinned by hash, no addresses", bool(pinned) and not wrong, said, wrong)


def check_refused(pinned: Iterable[Pinned]) -> Finding:
    """No release that must never be installed is pinned."""
    bad = []
    for it in pinned:
        for rule in REFUSED.get(it.name, "").split(","):
            if rule.strip() and Requirement(f"{it.name}{rule}").specifier.contains(Version(it.version)):
                bad.append(f"{it.name} {it.version} is refused: {rule.strip()}")
    said = "; ".join(f"{name} {rule}" for name, rule in REFUSED.items())
    return Finding("no refused release", not bad, said, tuple(bad))


def check_yanked(lock: Path, uv: str, run: Run) -> Finding:
    """The index calls no pinned release yanked; asked through uv, which downloads nothing for it."""
    check = "no yanked release"

    def warnings(requirements: Path) -> list[str] | None:
        with tempfile.TemporaryDirectory() as folder:
            asked = [uv, "pip", "install", "--dry-run", "--no-deps", "--target", folder, "-r", str(requirements)]
            done = run(asked)
        return None if done.returncode else re.findall(r"`([^`]+)` is yanked", done.stderr)

    with tempfile.TemporaryDirectory() as folder:
        control = Path(folder) / "control.txt"
        control.write_text(YANKED + "\n")
        if warnings(control) != [YANKED]:
            return Finding(check, None, f"the package index does not say that {YANKED} is, so it says nothing")
    found = warnings(lock)
    if found is None:
        return Finding(check, None, "the package index does not have all of the pinned releases")
    return Finding(check, not found, f"according to the package index, which knows {YANKED}", tuple(found))


def check_vulnerabilities(lock: Path, run: Run) -> Finding:
    """No pinned release has a known vulnerability, according to the first service that knows a notorious one."""
    check = "no known vulnerability"
    silent = []
    for service in SERVICES:
        with tempfile.TemporaryDirectory() as folder:
            control = Path(folder) / "control.txt"
            control.write_text(NOTORIOUS + "\n")
            known = ask_service(service, control, run)
        if known is None or not known[1]:
            silent.append(service)
            continue
        answer = ask_service(service, lock, run)
        if answer is None:
            silent.append(service)
            continue
        skipped, vulnerable = answer
        if skipped:
            details = (*vulnerable, *(f"not known to the service: {name}" for name in skipped))
            return Finding(check, False if vulnerable else None, f"{service} was asked", details)
        return Finding(check, not vulnerable, f"{service} was asked", tuple(vulnerable))
    return Finding(check, None, f"no service answers that knows even {NOTORIOUS}: asked {', '.join(silent)}")


def ask_service(service: str, requirements: Path, run: Run) -> tuple[list[str], list[str]] | None:
    """Return (packages the service does not know, lines on vulnerable ones); None where it does not answer."""
    how = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    done = run([sys.executable, "-m", "pip_audit", "-s", service, *how, "-r", str(requirements)])
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return None
    vulnerable = [
        f"{it['name']} {it['version']}: {vulnerability['id']}, repaired in "
        f"{', '.join(vulnerability['fix_versions']) or 'no release yet'}"
        for it in packages
        for vulnerability in it.get("vulns", ())
    ]
    return [it["name"] for it in packages if "skip_reason" in it], vulnerable


def check_licences(pinned: Iterable[Pinned]) -> Finding:
    """Every installed package says under which licence it is, and none asks for more than attribution."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in {it.name for it in pinned}:
        try:
            groups[licence_of(metadata.metadata(name))].append(name)
        except metadata.PackageNotFoundError:
            groups["(not installed here)"].append(name)
    lines = [f"{licence}: {', '.join(sorted(names))}" for licence, names in sorted(groups.items())]
    strong = sorted(name for licence, names in groups.items() if COPYLEFT.search(licence) for name in names)
    unknown = groups.get("(not stated)", [])
    said = f"{len(groups)} kinds; {len(unknown)} packages state none; copyleft: {', '.join(strong) or 'none'}"
    return Finding("licences listed", True, said, tuple(lines))


def licence_of(about: metadata.PackageMetadata) -> str:
    """Return what a package's metadata says of its licence, in one short line."""
    classified = [it.split("::")[-1].strip() for it in about.get_all("Classifier", []) if it.startswith("License ::")]
    named = "; ".join(sorted(it for it in classified if it != "OSI Approved"))
    stated = (about.get("License") or "").strip().split("\n")[0]
    short = stated if 0 < len(stated) <= 60 and stated.upper() != "UNKNOWN" else ""
    return about.get("License-Expression") or named or short or "(not stated)"


def run_quietly(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command, keeping what it says."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(list(command), 127, "", str(error))


def audit(lock: Path, uv: str, run: Run = run_quietly) -> list[Finding]:
    """Do all checks."""
    pinned, complaints = read_lock(lock.read_text())
    return [
        check_pins(pinned, complaints),
        check_refused(pinned),
        check_yanked(lock, uv, run),
        check_vulnerabilities(lock, run),
        check_licences(pinned),
    ]


def main() -> int:
    """Print each check's outcome; the last line is the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lock", type=Path, default=Path("requirements.lock"))
    parser.add_argument("--uv", default="uv")
    options = parser.parse_args()
    findings = audit(options.lock, options.uv)
    for finding in findings:
        outcome = {True: "passed", False: "FAILED", None: "NOT DONE"}[finding.passed]
        print(f"{outcome:9} {finding.check}: {finding.said}")
        for line in finding.details:
            print(f"            {line if len(line) < COLUMNS else line[: COLUMNS - 3] + '...'}")
    failed = [finding.check for finding in findings if finding.passed is False]
    undone = [finding.check for finding in findings if finding.passed is None]
    if failed:
        print(f"FAILED: {'; '.join(failed)}")
    elif undone:
        print(f"INCOMPLETE, which is not the same as safe: {'; '.join(undone)}")
    else:
        print("all checks passed")
    return 1 if failed else 2 if undone else 0


if __name__ == "__main__":
    sys.exit(main())
