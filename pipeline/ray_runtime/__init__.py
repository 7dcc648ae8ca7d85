"""The only place that imports ray: units and gangs on a pool of worker processes, one machine or a cluster of them.

Gangs run on Ray Core actors, not on Ray Train: the checkpoints, the restart and the fencing are ours, the same
processes serve units and ranks (importing torch once), and a gang starts in about a second instead of half a minute.
For the same reason elastic gangs are ours and not Ray Train's scaling policy.

    connection  starts a Ray or joins a running one; how code reaches the nodes
    nodes       which nodes may be used: those that see the workdir, and their free places
    host        the worker process
    pool        the worker processes that run, and where new ones go
    watch       who is silent, who is dead, and why
    units       maps over units
    gang        runs equal ranks, again after deaths, smaller or larger
    runtime     RayRuntime: the Runtime protocol over all of these
"""

from pipeline.ray_runtime.runtime import RayRuntime

__all__ = ["RayRuntime"]
