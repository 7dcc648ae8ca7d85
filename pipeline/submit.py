"""Gives a run of the pipeline to a Ray cluster as the one job of a slot of a schedule.

    python -m pipeline.submit --slot day --follow -- --config configs/emoji.yaml --workdir /shared/runs

Submitting again in the same slot starts nothing: the second call says how the job stands or, with --follow, shows its
log and ends with its exit code. What follows `--` goes to run_pipeline.py as it is.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import Interrupted, UserError, visible
from pipeline.jobs import follow, submission_id, submit_once
from pipeline.redaction import redacted, refuse_secrets
from pipeline.signals import listening

CHECKOUT = Path(__file__).resolve().parent.parent


def main(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="-- [ARGUMENT]...", help="For run_pipeline.py, after two dashes.")
    ] = None,
    name: Annotated[
        str, typer.Option(help="What the schedule is called; the id of its jobs is NAME-SLOT.")
    ] = "retrain",
    slot: Annotated[
        str, typer.Option(help="day | hour | minute of this machine's clock, or a name of your own, e.g. 20250131")
    ] = "day",
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="URL of the cluster's dashboard.")
    ] = "http://127.0.0.1:8265",
    follow_job: Annotated[
        bool, typer.Option("--follow", help="Show the job's log until it ends; leave with its exit code.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="If the slot's job failed or was stopped, submit NAME-SLOT-retryN.")
    ] = False,
    stop_after: Annotated[
        float | None, typer.Option(min=1, help="With --follow: seconds after which the job is asked to leave.")
    ] = None,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds that the cluster may be away before this gives up.")
    ] = 60,
    checkout: Annotated[
        str, typer.Option(help="Where the cluster's head has this checkout. Default: at the same path.")
    ] = str(CHECKOUT),
    python: Annotated[
        str, typer.Option(help="The head's Python with the requirements. Default: at the same path.")
    ] = sys.executable,
) -> None:
    """Submit a run of the pipeline to a Ray cluster, once a slot however often this is called."""
    try:
        with listening() as stop:
            given = arguments or []
            refuse_secrets({"the job's command": given})
            job_id = submission_id(name, slot)
            from pipeline.ray_runtime.jobs import RayJobs

            jobs = RayJobs(address, patience, stop)
            job, submitted = submit_once(jobs, job_id, entrypoint(given, checkout, python), retry=retry)
            _say(f"{job} ({'submitted now' if submitted else 'submitted before; nothing is submitted now'})")
            if follow_job:
                try:
                    job = follow(jobs, job, _write, stop, stop_after=stop_after)
                except Interrupted:
                    _say(f"{job.id} goes on; `ray job stop {job.id} --address {address}` would stop it")
                    raise
                _say(str(job))
            if job.exit_code and not retry:
                _say("submit it again with --retry: it goes on from what is finished")
    except UserError as error:
        print(redacted(f"error: {error}"), file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    raise typer.Exit(job.exit_code or 0)


def entrypoint(arguments: list[str], checkout: str, python: str) -> str:
    """Return the shell command of the job: the pipeline on the cluster that runs it, in place of the shell."""
    elsewhere = any(given.split("=")[0] in ("--address", "--runtime") for given in arguments)
    command = shlex.join([python, "run_pipeline.py", *arguments, *([] if elsewhere else ["--address", "auto"])])
    return f"cd {shlex.quote(checkout)} && exec {command}"


def _say(text: str) -> None:
    print(visible(redacted(text)), flush=True)


def _write(text: str) -> None:
    print(visible(redacted(text)), end="", flush=True)


if __name__ == "__main__":
    typer.run(main)
