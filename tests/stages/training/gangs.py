"""Real gangs for tests: processes with gloo, and a reporter that remembers."""

from __future__ import annotations

import multiprocessing
import socket
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.runtime import Rank


@dataclass
class RecordingReporter:
    """Keeps what a loop says; asks it to stop after `stop_after` questions."""

    stop_after: int | None = None
    rows: list[dict[str, float]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    steps_seen: list[int] = field(default_factory=list)
    questions: int = 0

    def progress(self, done: int, total: int, numbers: Mapping[str, float]) -> None:
        self.steps_seen.append(done)

    def history(self, rows: Sequence[Mapping[str, float]]) -> None:
        self.rows.extend(dict(row) for row in rows)

    def picture(self, name: str, data: bytes, step: int) -> None:
        pass

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def stopping(self) -> bool:
        self.questions += 1
        return self.stop_after is not None and self.questions >= self.stop_after


def rank_of(number: int = 0, world: int = 1, port: int = 0, attempt: str = "000001-000", threads: int = 1) -> Rank:
    return Rank(
        rank=number,
        world=world,
        local_rank=number,
        local_world=world,
        node_rank=0,
        device="cpu",
        main_address="127.0.0.1",
        main_port=port,
        threads=threads,
        attempt=attempt,
    )


def processes() -> Any:
    """Fresh processes by a server that has imported torch and Fabric once: importing them takes many seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "stages.training.prior", "stages.training.fabric"])
    return context


def run_gang(world: int, function: Callable[..., Any], *arguments: Any, attempt: str = "000001-000") -> list[Any]:
    """Return `function(rank, *arguments)` of each rank, each in a fresh process."""
    context = processes()
    queue = context.SimpleQueue()
    port = _free_port()
    members = [
        context.Process(target=_member, args=(queue, rank_of(number, world, port, attempt), function, arguments))
        for number in range(world)
    ]
    for member in members:
        member.start()
    answers = dict(queue.get() for _ in members)
    for member in members:
        member.join(timeout=30)
    failures = [answer for answer in answers.values() if isinstance(answer, _Failure)]
    assert not failures, "\n".join(failure.text for failure in failures)
    return [answers[number] for number in range(world)]


@dataclass(frozen=True)
class _Failure:
    text: str


def _member(queue: Any, rank: Rank, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        queue.put((rank.rank, function(rank, *arguments)))
    except BaseException:
        queue.put((rank.rank, _Failure(traceback.format_exc())))
        raise


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
