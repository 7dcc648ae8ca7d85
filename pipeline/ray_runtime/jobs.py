"""Jobs of a Ray cluster, through its dashboard; every question is answered in a bounded time, or is an error."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from pipeline.errors import ClusterUnreachable, ConfigError, Interrupted
from pipeline.jobs import Job
from pipeline.ray_runtime.connection import ADMISSION_REMEDY, first_sentence
from pipeline.signals import StopRequest

REQUEST_SECONDS = 30.0
"""How long one request may take."""
AGAIN_SECONDS = 2.0
"""Time between questions to a cluster that does not answer."""

T = TypeVar("T")


class _Bounded(JobSubmissionClient):  # type: ignore[misc]
    """Ray's client, which would wait for ever for an answer."""

    def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=REQUEST_SECONDS, **more)


@dataclass
class RayJobs:
    """The jobs of the cluster whose dashboard is at `address`, an http or https URL."""

    address: str
    patience: float
    """Seconds that a cluster may be away, starting or restarting, before a question to it fails."""
    stop: StopRequest = field(default_factory=StopRequest)
    """Ends the waiting for it."""
    _client: _Bounded | None = None

    def __post_init__(self) -> None:
        if not self.address.startswith(("http://", "https://")):
            raise ConfigError(f"--address {self.address}: jobs go to the dashboard's URL, e.g. http://127.0.0.1:8265")

    def find(self, job_id: str) -> Job | None:
        """Return the job of this id; None where the cluster knows none."""

        def ask(client: _Bounded) -> Job | None:
            try:
                found = client.get_job_info(job_id)
            except RuntimeError as error:
                if "status code 404" in str(error):
                    return None
                raise
            return Job(
                job_id,
                str(found.status),
                found.entrypoint,
                (found.start_time or 0) / 1000,
                found.driver_exit_code,
                found.message or "",
            )

        return self._asked(ask)

    def submit(self, job_id: str, entrypoint: str) -> bool:
        """Submit a job; return False, and change nothing, where one of this id exists."""

        def ask(client: _Bounded) -> bool:
            try:
                client.submit_job(entrypoint=entrypoint, submission_id=job_id)
            except RuntimeError as error:
                if "already exists" in str(error):
                    return False
                raise
            return True

        return self._asked(ask)

    def end(self, job_id: str) -> None:
        """Ask a job to leave at its next safe point (SIGTERM)."""
        self._asked(lambda client: client.stop_job(job_id))

    def log(self, job_id: str) -> str | None:
        """Return all that a job has written; None where its log cannot be read now."""

        def ask(client: _Bounded) -> str | None:
            try:
                return str(client.get_job_logs(job_id))
            except RuntimeError:  # not begun, or the node that holds it is gone
                return None

        return self._asked(ask)

    def _asked(self, question: Callable[[_Bounded], T]) -> T:
        """Ask again while the cluster is away. Raises ClusterUnreachable, ConfigError for the token, Interrupted."""
        began = time.monotonic()
        while True:
            try:
                return question(self._connected())
            except AuthenticationError as error:
                raise ConfigError(f"--address {self.address}: {first_sentence(error)}: {ADMISSION_REMEDY}") from None
            except (OSError, RuntimeError) as error:  # those of requests are OSErrors
                if time.monotonic() - began >= self.patience:
                    raise ClusterUnreachable(
                        f"the Ray cluster at {self.address} does not answer as it should for {self.patience:.0f} s "
                        f"(--patience): {_last_line(error)}. See that its head runs, that its dashboard is there "
                        "(configs/cluster/start_ray.sh starts one), and that --address leads to it"
                    ) from None
            if self.stop:
                raise Interrupted(self.stop.signal_number or 2)
            time.sleep(AGAIN_SECONDS)

    def _connected(self) -> _Bounded:
        if self._client is None:
            os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # Ray prefers the environment to what it is told
            self._client = _Bounded(self.address)
        return self._client


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
