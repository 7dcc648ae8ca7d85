"""Signs of life of worker processes: who is silent, who died, and what is known of why."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError

from pipeline.ray_runtime.host import Message, Pulse
from pipeline.ray_runtime.nodes import is_alive
from pipeline.ray_runtime.pool import Hosted

LONGEST_TICK = 5.0
"""A driver that did not look for longer (it was stopped itself) does not count that as others' silence."""
DOUBTFUL = 3.0
"""Seconds of silence after which one is not trusted with new work, when another has failed."""


@dataclass
class Watch:
    """Asks workers for signs of life, and never waits for one that gives none."""

    hosts: list[Hosted] = field(default_factory=list)
    _asked: dict[Any, Hosted] = field(default_factory=dict)
    _silence: dict[Hosted, float] = field(default_factory=dict)
    _heard: dict[Hosted, int] = field(default_factory=dict)
    _looked: float = field(default_factory=time.monotonic)

    def look(self, stop: bool = False) -> Iterator[tuple[Hosted, Pulse]]:
        """Take what has come of the last questions, then ask again; `stop` asks the ranks to leave."""
        now = time.monotonic()
        tick, self._looked = min(now - self._looked, LONGEST_TICK), now
        self._asked = {reference: host for reference, host in self._asked.items() if host in self.hosts}
        for host in self.hosts:
            self._silence[host] = self._silence.get(host, 0.0) + tick
        answered, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0) if self._asked else ([], [])
        for reference in answered:
            host = self._asked.pop(reference)
            try:
                pulse = ray.get(reference)
            except RayError:
                continue  # who waits for its work learns of its death
            self._silence[host] = 0.0
            self._heard[host] = self._heard.get(host, 0) + 1
            yield host, pulse
        waiting = set(self._asked.values())
        for host in self.hosts:
            if host not in waiting:
                self._asked[host.actor.poll.remote(stop)] = host

    def last_words(self, host: Hosted, seconds: float) -> list[Message]:
        """Return what a worker that has ended its work said and nobody took yet. Raises RayError if it cannot."""
        asked = [reference for reference, other in self._asked.items() if other is host]
        self._asked = {reference: other for reference, other in self._asked.items() if other is not host}
        pulses = ray.get([*asked, host.actor.poll.remote(False)], timeout=seconds)
        return [message for pulse in pulses for message in pulse.messages]

    def silent(self, seconds: float) -> list[Hosted]:
        """Return those that have given no sign of life for so long."""
        return [host for host in self.hosts if self._silence.get(host, 0.0) > seconds]

    def answers(self, host: Hosted) -> int:
        """Return how often a worker has answered."""
        return self._heard.get(host, 0)


def cause_of_death(host: Hosted, error: RayError) -> tuple[str, bool]:
    """Say what killed a worker, and whether it was the end of its whole node."""
    if isinstance(error, ActorUnavailableError) or not is_alive(host.node):
        # Of a process that ended alone, its node would have told.
        return f"node {host.node.name} died or was cut off", True
    pid = f" (process {host.place.pid})" if host.place else ""
    # Ray explains itself at length: what kind of end it was, then guesses.
    _, found, detail = str(error).partition("Worker exit detail: ")
    detail = detail.partition(" Some common causes")[0] if found else str(error).strip().splitlines()[-1].strip()
    return f"its process on node {host.node.name}{pid} was killed, ran out of memory or crashed: {detail}", False


def silence_of(host: Hosted, seconds: float) -> str:
    """Say that a worker hangs."""
    pid = f" (process {host.place.pid})" if host.place else ""
    return (
        f"its process on node {host.node.name}{pid} gave no sign of life for {seconds:.0f} s "
        "(cluster.hang_timeout): stopped, swapped out, or cut off"
    )
