"""Ways that a message leaves the house, each tried once a call: a program's standard input, an HTTP POST."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol

from pipeline.errors import visible

WORTH_RETRYING = frozenset({408, 425, 429, *range(500, 600)})
"""HTTP answers after which the same request may yet succeed."""
SHOWN = 200
"""Characters of a program's complaint that are repeated."""


class Undelivered(Exception):
    """An attempt failed; `again` says whether another one may succeed."""

    def __init__(self, reason: str, *, again: bool = True) -> None:
        super().__init__(reason)
        self.again = again


class Delivery(Protocol):
    """A way to deliver."""

    def __call__(self, payload: bytes, message_id: str, seconds: float) -> None:
        """Deliver JSON within so many seconds. Raises Undelivered."""


@dataclass(frozen=True)
class ToCommand:
    """Starts a program, without a shell, and writes to its standard input."""

    command: Sequence[str]

    def __call__(self, payload: bytes, message_id: str, seconds: float) -> None:
        """Deliver; a program that takes too long is killed with all that it started."""
        try:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise Undelivered(f"it cannot be started: {reason}", again=False) from None
        with process:
            try:
                _, said = process.communicate(payload, timeout=seconds)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise Undelivered(f"it took longer than {seconds:.1f} s") from None
        if process.returncode != 0:
            lines = visible(said.decode(errors="replace")).strip().splitlines()
            complaint = f": {lines[-1][:SHOWN]}" if lines else ""
            raise Undelivered(f"exit code {process.returncode}{complaint}")


@dataclass(frozen=True)
class ToWebhook:
    """POSTs to a URL, which no message repeats. A redirection is refused: it would turn the POST into a GET."""

    url: str

    def __call__(self, payload: bytes, message_id: str, seconds: float) -> None:
        """Deliver; any answer of 200 to 299 is good, and its content is not read."""
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "smalti",
            "Idempotency-Key": message_id,
        }
        request = urllib.request.Request(self.url, payload, headers)  # noqa: S310  # http and https alone: check_url
        opener = urllib.request.build_opener(_NoRedirection)
        try:
            with opener.open(request, timeout=seconds) as answer:
                status = answer.status
        except urllib.error.HTTPError as error:
            error.close()
            status = error.code
        except TimeoutError:
            raise Undelivered(f"no answer in {seconds:.1f} s") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise Undelivered(f"no connection in {seconds:.1f} s") from None
            raise Undelivered(_why(error.reason)) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Undelivered(_why(error)) from None
        if not 200 <= status < 300:
            raise Undelivered(f"it answered {status}", again=status in WORTH_RETRYING)


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        """Follow none."""


def _why(error: object) -> str:
    """The system's words, or the error's kind alone: its text may hold the URL."""
    return str(getattr(error, "strerror", None) or type(error).__name__)
