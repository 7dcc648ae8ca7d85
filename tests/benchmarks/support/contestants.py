"""Who takes part in a benchmark has a process of its own: settings of one (threads, malloc) must not help the other."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self


class Contestant:
    """What `build(*arguments)` returns, called in turns with others in a process of its own; a context manager.

    `build`, arguments and results travel by pickle, so `build` is a function of a module.
    """

    def __init__(self, build: Callable[..., Callable[..., Any]], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=_serve, args=(end, build, arguments))
        self._process.start()
        end.close()  # so that a dead process is an EOFError here

    def __call__(self, *arguments: Any) -> tuple[float, Any]:
        """The seconds that the call took over there, and its result."""
        self._pipe.send(arguments)
        seconds, result = self._pipe.recv()
        return seconds, result

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(BrokenPipeError):  # it may have died of its own
            self._pipe.send(None)
        self._process.join()


def _serve(pipe: Connection, build: Callable[..., Callable[..., Any]], arguments: tuple[Any, ...]) -> None:
    run = build(*arguments)
    while (call := pipe.recv()) is not None:
        started = time.perf_counter()
        result = run(*call)
        pipe.send((time.perf_counter() - started, result))
