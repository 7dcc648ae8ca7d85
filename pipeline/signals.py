"""Ctrl-C and SIGTERM ask running work to leave at its next safe point; asked twice, it leaves at once."""

from __future__ import annotations

import contextlib
import signal
import types
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import Interrupted


@dataclass
class StopRequest:
    """Which signal asked the run to leave, None while none did."""

    signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None


@contextlib.contextmanager
def listening() -> Iterator[StopRequest]:
    """Collect SIGINT and SIGTERM into a StopRequest while the block runs; a second one ends it with Interrupted."""
    request = StopRequest()

    def handle(signal_number: int, frame: types.FrameType | None) -> None:
        if request:
            raise KeyboardInterrupt
        request.signal_number = signal_number

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    except KeyboardInterrupt:
        raise Interrupted(request.signal_number or signal.SIGINT) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
