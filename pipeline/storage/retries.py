"""What a remote store's failures mean: what passes is tried again for minutes, what does not is said at once."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import math
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from pipeline.errors import ConfigError, StorageError, UserError

log = logging.getLogger(__name__)

PATIENCE = "SMALTI_STORAGE_PATIENCE"
"""Environment variable: seconds for which an operation is tried again. Default: 300, enough to restart a server."""
FIRST_DELAY, LONGEST_DELAY = 0.25, 15.0
"""Seconds between tries: doubled each time from the first to the longest, times a random 0.5 to 1."""

_PASSING_ERRNOS = frozenset(
    {
        *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT),
        *(errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.EBUSY, errno.EREMOTEIO),
    }
)
# The stores' clients are not imported here; their exceptions, and what those derive from, are known by name.
_PASSING_NAMES = frozenset(
    {
        *("ConnectionError", "HTTPClientError", "ResponseParserError", "IncompleteRead", "IncompleteReadError"),
        *("ClientConnectionError", "ClientPayloadError", "TimeoutError"),
    }
)
_LASTING_NAMES = frozenset({"SSLError", "ClientSSLError", "ClientConnectorCertificateError"})
_PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_PASSING_CODES = frozenset({"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded"})

T = TypeVar("T")

_at_most: ContextVar[float] = ContextVar("at_most", default=math.inf)

announce: Callable[[str], None] = lambda message: None  # noqa: E731
"""Tells the person at the terminal that storage does not answer; the session puts its screen here."""


def persist(what: str, act: Callable[[], T]) -> T:
    """Do something remote; `what` completes "cannot ...". A failure that passes is tried again, with growing pauses.

    Each failure is logged once. Raises StorageError when the patience is used up; other failures come as they are.
    """
    started, patience = time.monotonic(), patience_seconds()
    for tries in itertools.count(1):
        try:
            result = act()
        except UserError:  # said all there is to say
            raise
        except Exception as error:
            waited = time.monotonic() - started
            if not is_passing(error):
                raise
            if waited >= patience:
                raise StorageError(
                    f"cannot {what}: no good answer for {waited:.0f} s ({tries} tries, at last: {brief(error)}): see "
                    f"that the store runs and can be reached ({PATIENCE} says how long to wait), then run the same "
                    "command again"
                ) from error
            message = f"cannot {what} yet ({brief(error)}): trying again for up to {patience - waited:.0f} s"
            log.warning("%s (try %d)", message, tries)
            if tries == 1:
                announce(message)
            time.sleep(min(_delay(tries), max(patience - waited, 0.05)))
            continue
        if tries > 1:
            log.warning("could %s after %.1f s and %d tries", what, time.monotonic() - started, tries)
        return result
    raise AssertionError("counted for ever")


@contextlib.contextmanager
def patience_of(seconds: float) -> Iterator[None]:
    """Within the block nothing is tried again for longer than this."""
    before = _at_most.set(seconds)
    try:
        yield
    finally:
        _at_most.reset(before)


def patience_seconds() -> float:
    """Return for how long an operation is tried again. Raises ConfigError where the environment says no number."""
    text = os.environ.get(PATIENCE, "300")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"{PATIENCE}={text}: must be a number of seconds, such as 300")
    return min(seconds, _at_most.get())


def is_passing(error: BaseException) -> bool:
    """Whether it may go well the next time: time-outs, lost or refused connections, overload, a server's own faults."""
    causes = list(causes_of(error))
    for cause in causes:
        status, code = answer_of(cause)
        if code in _PASSING_CODES:
            return True
        if status is not None:
            return status in _PASSING_STATUSES
        if isinstance(cause, socket.gaierror):
            return cause.errno == socket.EAI_AGAIN
        if _names(cause) & _LASTING_NAMES:
            return False
    return any(
        _names(cause) & _PASSING_NAMES or (isinstance(cause, OSError) and cause.errno in _PASSING_ERRNOS)
        for cause in causes
    )


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def answer_of(error: BaseException) -> tuple[int | None, str | None]:
    """Return the HTTP status and the store's error code that an exception of its client carries, as far as it does."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        code = response.get("Error", {}).get("Code")
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status, code
    for name in ("status", "code", "status_code"):  # aiohttp's, gcsfs's, azure's
        value = getattr(error, name, None)
        if isinstance(value, int | str) and str(value).isdecimal() and 400 <= int(value) < 600:
            return int(value), None
    return None, None


def brief(error: BaseException) -> str:
    """Return an error in a line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _delay(tries: int) -> float:
    doubled: float = FIRST_DELAY * 2 ** min(tries - 1, 16)
    return min(doubled, LONGEST_DELAY) * random.uniform(0.5, 1)


def _names(error: BaseException) -> set[str]:
    return {base.__name__ for base in type(error).__mro__}
