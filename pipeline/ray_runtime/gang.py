"""Runs the equal ranks of a gang; after a death all start again from their checkpoint, as many as there is room for."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from pipeline.config import ClusterConfig
from pipeline.errors import Interrupted, StageError, WorkerLost
from pipeline.ray_runtime.host import Message, Pulse
from pipeline.ray_runtime.nodes import Node
from pipeline.ray_runtime.outcomes import POLL_SECONDS
from pipeline.ray_runtime.pool import Hosted, Pool
from pipeline.ray_runtime.watch import DOUBTFUL, Watch, cause_of_death, silence_of
from pipeline.runtime import GangStart, Loop, Rank, Reporter, attempt_name

log = logging.getLogger(__name__)

GROW_SECONDS = 30.0
"""How often a gang that is smaller than it may be looks for room."""
LAST_WORDS_SECONDS = 30.0
"""How long a rank that has ended may take to hand over what it said."""


class Lost(Exception):
    """A rank died or hangs: what happened, where."""


class Enlarging(Exception):
    """The ranks have left at a checkpoint because there is room for more of them."""


@dataclass
class Team:
    """One start of a gang: the worker of each rank, and what it will return."""

    hosts: list[Hosted]
    attempt: str
    results: dict[Any, int]
    """The rank of each result to come."""
    watch: Watch
    failure: RayTaskError | None = None
    """A rank's exception. Its peers die of the death of one of them too: who was first is known a little later."""
    answered_at_failure: dict[Hosted, int] = field(default_factory=dict)
    stepping: bool = False
    """Whether rank 0's loop runs. Before, libraries load: the interpreter may stand still for minutes."""
    enlarging: bool = False
    looked_for_room: float = field(default_factory=time.monotonic)


@dataclass
class Gang:
    """A gang from its first start to its result."""

    pool: Pool
    cluster: ClusterConfig
    fewest: int
    most: int
    loop: Loop
    reporter: Reporter
    starts: list[GangStart]
    """Filled in while it runs."""
    deaths: int = 0
    """In a row, without getting further."""
    furthest: int = 0
    """The step up to which any start has come."""
    reached: int = 0
    """The step up to which this one has come."""
    grow_seconds: float = GROW_SECONDS

    def run(self, run: int) -> Any:
        """Return rank 0's result. `run` numbers the driver's attempt at this stage."""
        while True:
            hosts = self._assemble()
            self._tell_size(hosts)
            attempt, started, ended = attempt_name(run, len(self.starts)), time.monotonic(), "failed"
            try:
                self.reached = 0
                answer = self._follow(self._launch(hosts, attempt))
                ended = "finished"
                return answer
            except Enlarging:
                ended = "made larger"
            except Lost as lost:
                ended = str(lost)
                self.pool.drop(hosts)
                self._count_death(lost)
            except BaseException:
                self.pool.drop(hosts)
                raise
            finally:
                nodes = len({host.node for host in hosts})
                self.starts.append(GangStart(attempt, len(hosts), nodes, time.monotonic() - started, ended))

    def _assemble(self) -> list[Hosted]:
        """Wait until there is room for the fewest ranks; return workers for as many as there is room for."""
        began, told = time.monotonic(), False
        while True:
            nodes = self.pool.plan(self.most)
            if len(nodes) >= self.fewest:
                hosts = self.pool.take(nodes)
                if len(hosts) >= self.fewest:
                    return hosts
                continue  # some did not answer: plan again without their nodes
            waited = time.monotonic() - began
            if waited > self.cluster.start_timeout:
                raise StageError(
                    f"{self._missing()}. Waited {waited:.0f} s (cluster.start_timeout): free resources or add nodes, "
                    "lower cluster.num_workers, or allow fewer ranks with cluster.num_workers=[FEWEST,MOST]"
                )
            if not told and waited > 10:
                told = True
                self.reporter.warn(f"{self._missing()}; waits up to {self.cluster.start_timeout:.0f} s for more")
            if self.reporter.stopping():
                raise Interrupted
            time.sleep(POLL_SECONDS)

    def _missing(self) -> str:
        room = self.pool.room()
        kind = "a GPU and a CPU" if self.pool.gpu else "a CPU"
        found = ", ".join(f"{count} on {node.name}" for node, count in room.items()) or "no usable node"
        return f"the gang needs {self.fewest} ranks with {kind} each and there is room for {found}"

    def _tell_size(self, hosts: list[Hosted]) -> None:
        before = self.starts[-1].ranks if self.starts else self.most
        if len(hosts) != before:
            nodes = ", ".join(dict.fromkeys(host.node.name for host in hosts))
            self.reporter.warn(f"the gang goes on with {len(hosts)} ranks instead of {before}, on {nodes}")
        if self.starts and self.starts[-1].ended == "made larger" and len(hosts) <= before:
            self.grow_seconds *= 4  # the room was gone: ask less often

    def _launch(self, hosts: list[Hosted], attempt: str) -> Team:
        """Give each worker its rank, those of one node side by side."""
        nodes = list(dict.fromkeys(host.node for host in hosts))
        hosts.sort(key=lambda host: nodes.index(host.node))
        main = hosts[0]
        assert main.place is not None
        try:
            port = ray.get(main.actor.free_port.remote(), timeout=self.cluster.hang_timeout)
        except RayError as error:
            raise Lost(f"rank 0: {cause_of_death(main, error)[0]}") from error
        results: dict[Any, int] = {}
        seen = dict.fromkeys(nodes, 0)
        for number, host in enumerate(hosts):
            rank = self._rank(number, host, seen, [other.node for other in hosts], main.place.address, port, attempt)
            seen[host.node] += 1
            results[host.actor.run_rank.remote(self.loop, rank)] = number
        return Team(hosts, attempt, results, Watch(list(hosts)))

    def _rank(
        self, number: int, host: Hosted, seen: dict[Node, int], nodes: list[Node], address: str, port: int, attempt: str
    ) -> Rank:
        assert host.place is not None
        local_world = nodes.count(host.node)
        return Rank(
            rank=number,
            world=len(nodes),
            local_rank=seen[host.node],
            local_world=local_world,
            node_rank=list(seen).index(host.node),
            device="cuda:0" if self.pool.gpu else "cpu",
            main_address=address if len(seen) > 1 else "127.0.0.1",
            main_port=port,
            threads=self.cluster.threads or max(1, host.place.cores // local_world),
            attempt=attempt,
        )

    def _follow(self, team: Team) -> Any:
        """Wait for all ranks, pass on what they say; raise Lost, Enlarging, or the error of one of them."""
        answer, interrupted = None, False
        while team.results:
            for reference in ray.wait(list(team.results), timeout=POLL_SECONDS)[0]:
                number = team.results.pop(reference)
                value, error = self._outcome(team, reference, number)
                interrupted |= isinstance(error, Interrupted)
                if error is not None and not (team.enlarging and isinstance(error, Interrupted)):
                    self._drain(team)
                    raise error
                if number == 0:
                    answer = value
                elif team.failure is None:
                    team.watch.hosts.remove(team.hosts[number])  # it has done its part, and may go
            self._look(team)
        while team.failure is not None:
            time.sleep(POLL_SECONDS)
            self._look(team)
        self._drain(team)
        if interrupted:
            raise Enlarging
        return answer

    def _outcome(self, team: Team, reference: Any, number: int) -> tuple[Any, Any]:
        try:
            value, error = ray.get(reference)
        except RayActorError as died:
            self.pool.nodes.doubt([team.hosts[number].node])
            raise Lost(f"rank {number} of {len(team.hosts)}: {cause_of_death(team.hosts[number], died)[0]}") from died
        except RayTaskError as failed:
            if team.failure is None:
                team.failure = failed
                team.answered_at_failure = {host: team.watch.answers(host) for host in team.watch.hosts}
            return None, None
        return value, error

    def _look(self, team: Team) -> None:
        """Pass on what the ranks say, see who is silent, and whether there is room for more ranks."""
        for host, pulse in team.watch.look(self.reporter.stopping() or team.enlarging):
            self._pass_on(pulse.messages)
            if host is team.hosts[0]:
                team.stepping |= pulse.beats >= 2
                self._check_steps(pulse)
        patience = self.cluster.hang_timeout + (0 if team.stepping else self.cluster.start_timeout)
        silent = team.watch.silent(patience)
        if silent:
            self.pool.nodes.doubt([host.node for host in team.watch.silent(DOUBTFUL)])
            number = team.hosts.index(silent[0])
            raise Lost(f"rank {number} of {len(team.hosts)}: {silence_of(silent[0], patience)}")
        # A peer's death makes a rank fail before the driver hears of it. When all have answered twice since, none died.
        if team.failure is not None and all(
            team.watch.answers(host) >= count + 2 for host, count in team.answered_at_failure.items()
        ):
            raise team.failure.as_instanceof_cause() from None
        if not team.enlarging and len(team.hosts) < self.most:
            team.enlarging = self._room_for_more(team)

    def _check_steps(self, pulse: Pulse) -> None:
        if pulse.beats >= 2 and pulse.quiet > self.cluster.stall_timeout:
            raise Lost(
                f"all ranks answer, but none has made a step for {pulse.quiet:.0f} s (cluster.stall_timeout): "
                "they wait for each other"
            )

    def _room_for_more(self, team: Team) -> bool:
        now = time.monotonic()
        if now - team.looked_for_room < self.grow_seconds:
            return False
        team.looked_for_room = now
        room = len(self.pool.plan(self.most))
        if room <= len(team.hosts):
            return False
        self.reporter.warn(
            f"there is room for {room} ranks instead of {len(team.hosts)}: the gang checkpoints and grows"
        )
        return True

    def _pass_on(self, messages: list[Message]) -> None:
        for name, arguments in messages:
            if name == "progress":
                self.reached = max(self.reached, arguments[0])
            getattr(self.reporter, name)(*arguments)

    def _drain(self, team: Team) -> None:
        """Pass on the last words of rank 0: its rows of history are in a checkpoint already."""
        try:
            self._pass_on(team.watch.last_words(team.hosts[0], LAST_WORDS_SECONDS))
        except RayError as error:
            raise Lost(f"rank 0: {cause_of_death(team.hosts[0], error)[0]}") from error

    def _count_death(self, lost: Lost) -> None:
        """Raises WorkerLost if the gang has died too often without getting further than before."""
        self.deaths = 1 if self.reached > self.furthest else self.deaths + 1
        self.furthest = max(self.furthest, self.reached)
        if self.deaths > self.cluster.max_failures:
            raise WorkerLost(
                f"a rank of the gang died {self.deaths} times, more than cluster.max_failures="
                f"{self.cluster.max_failures} allows without getting further. The last time {lost}"
            ) from lost
        self.reporter.warn(
            f"{lost}; all ranks start again from the last checkpoint "
            f"({self.deaths} of at most {self.cluster.max_failures} times in a row)"
        )
        log.warning("death in the gang: %s", lost)
