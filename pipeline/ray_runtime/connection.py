"""Starts a Ray on this machine, or joins a running cluster."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private import services
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.exceptions import AuthenticationError

from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError, StageError
from pipeline.runtime import available_cores, visible_gpus

log = logging.getLogger(__name__)

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
CHECKOUT = Path(__file__).resolve().parents[2]
NOT_SHIPPED = [".venv", ".uv", ".git", "runs", "*.png"]
"""What no node needs of the checkout, besides what .gitignore names. Ray refuses a folder beyond 500 MB."""
ANSWER_SECONDS = 15.0
"""How long a cluster may take to say that it is there. Ray itself would try for minutes."""
START_REMEDY = "start one with configs/cluster/start_ray.sh, or use --address local"
ADMISSION_REMEDY = (
    "copy the head's ~/.ray/auth_token here, or name it in RAY_AUTH_TOKEN_PATH (on Kubernetes: RAY_AUTH_TOKEN from the "
    "cluster's secret), and set RAY_AUTH_MODE=token"
)


def connect(cluster: ClusterConfig, address: str) -> Path | None:
    """Start or join the Ray at `address`, unless this process has one; return the session folder of one it started.

    Raises ConfigError where none answers, or does not let us in.
    """
    if ray.is_initialized():
        return None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address == "local":
        ranks = cluster.ranks[1] if cluster.ranks else 1
        return _start_here(max(available_cores(), ranks, cluster.unit_workers or 1))
    environment = {"working_dir": str(CHECKOUT), "excludes": NOT_SHIPPED} if cluster.ship_code else None
    knock(address)
    try:
        ray.init(address=address, runtime_env=environment, **QUIET)
    except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster at --address {address} lets this run in ({first_sentence(error)}): {START_REMEDY}. Where "
            f"one runs, it may refuse the token: {ADMISSION_REMEDY}"
        ) from error
    return None


def _start_here(cores: int) -> Path:
    """Start a Ray on this machine, with a second attempt where it is busy; return its session folder.

    Raises StageError where it does not start.
    """
    reason = ""
    for _ in range(2):
        try:
            started = ray.init(
                address="local",
                num_cpus=cores,
                num_gpus=visible_gpus(),
                include_dashboard=False,
                object_store_memory=256 * 2**20,
                **QUIET,
            )
            return Path(started.address_info["session_dir"])
        except Exception as error:  # Ray raises no narrower one: its processes have half a minute to appear
            ray.shutdown()
            log.warning("Ray did not start: %s", error)
            reason = first_sentence(error)
    raise StageError(
        f"Ray did not start on this machine, twice ({reason}): if the machine is busy, run the same command again "
        "later; --runtime local does without Ray"
    )


def knock(address: str, seconds: float = ANSWER_SECONDS) -> None:
    """Ask the head at `auto` or `HOST:PORT` whether it is there and takes our token; a Ray client's URL is left to Ray.

    Raises ConfigError naming the address and the remedy.
    """
    try:
        place = None if "://" in address else services.canonicalize_bootstrap_address(address)
    except ValueError:
        raise ConfigError(f"--address {address}: it is local, auto or HOST:PORT") from None
    if place is None:
        return
    with init_grpc_channel(place) as channel:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            stub.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=seconds)
        except AuthenticationError as error:
            raise ConfigError(f"--address {address}: {first_sentence(error)}: {ADMISSION_REMEDY}") from None
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise ConfigError(f"the Ray cluster at {place} refuses the token: {ADMISSION_REMEDY}") from None
            late = error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            reason = f"no answer within {seconds:.0f} s" if late else error.details()
            raise ConfigError(f"no Ray cluster at --address {address} ({place}: {reason}): {START_REMEDY}") from None


def first_sentence(error: Exception) -> str:
    """Return what Ray says of an error, without the advice that it adds at length."""
    return str(error).partition("\n")[0].partition(". ")[0]
