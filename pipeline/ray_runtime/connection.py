"""Starts a Ray on this machine, or joins a running cluster."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError
from pipeline.runtime import available_cores, visible_gpus

CHECKOUT = Path(__file__).resolve().parents[2]
NOT_SHIPPED = [".venv", ".uv", ".git", "runs", "*.png"]
"""What no node needs of the checkout, besides what .gitignore names. Ray refuses a folder beyond 500 MB."""


def connect(cluster: ClusterConfig, address: str) -> Path | None:
    """Start or join the Ray at `address`, unless this process has one; return the session folder of one it started.

    Raises ConfigError where none answers, or does not let us in.
    """
    if ray.is_initialized():
        return None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        ranks = cluster.ranks[1] if cluster.ranks else 1
        started = ray.init(
            address="local",
            num_cpus=max(available_cores(), ranks, cluster.unit_workers or 1),
            num_gpus=visible_gpus(),
            include_dashboard=False,
            object_store_memory=256 * 2**20,
            **quiet,
        )
        return Path(started.address_info["session_dir"])
    environment = {"working_dir": str(CHECKOUT), "excludes": NOT_SHIPPED} if cluster.ship_code else None
    try:
        ray.init(address=address, runtime_env=environment, **quiet)
    except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster at --address {address} lets this run in ({error}): start one with "
            "configs/cluster/start_ray.sh, or use --address local. Where one runs, it may refuse the token: copy the "
            "head's ~/.ray/auth_token here, or name it in RAY_AUTH_TOKEN_PATH, and set RAY_AUTH_MODE=token"
        ) from error
    return None
