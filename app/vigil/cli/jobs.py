"""`vigil jobs`, `vigil logs` and `vigil cancel`: this user's runs under Slurm."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vigil_slurm.jobs import JobStatus

Name = Annotated[str, typer.Argument(help="Run folder, or id of a job.", metavar="RUN|JOB")]

MAX_ENDED_JOBS = 20
"""Ended jobs that are shown without --all."""


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("jobs")(jobs)
    app.command("logs")(logs)
    app.command("cancel")(cancel)


def jobs(
    everything: Annotated[bool, typer.Option("--all", help="Show all ended jobs (default: the newest 20).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list with all fields.")] = False,
) -> None:
    """List this user's Vigil runs under Slurm: state, step, loss, restarts and log.

    Ended jobs are read from ~/.local/state/vigil/jobs.jsonl and their run folders, without Slurm's accounting.
    """
    from vigil_slurm.jobs import list_jobs

    statuses = list_jobs()
    ended = [status for status in statuses if not status.active]
    hidden = 0 if everything or as_json else max(0, len(ended) - MAX_ENDED_JOBS)
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps([asdict(status) for status in statuses], indent=2))
        return
    if not statuses:
        typer.echo("no jobs; submit one with `vigil submit`")
        return
    _print_table([_HEADER, *map(_cells, [*ended[hidden:], *(status for status in statuses if status.active)])])
    if hidden:
        typer.echo(f"… and {hidden} older ones: vigil jobs --all")


def logs(
    name: Name,
    following: Annotated[bool, typer.Option("-f", "--follow", help="Follow the log until the job has left the queue.")] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="Print the log of this rank only.", metavar="N")] = None,
) -> None:
    """Print the log of a job over all restarts; for a run folder that of its newest job."""
    from vigil_data.errors import Failure, UserError
    from vigil_slurm.jobs import find_job, find_queued_job, log_path
    from vigil_slurm.tail_log import follow_log
    from vigil_training.runs.run import Run

    job, run = find_job(name)
    path = log_path(run, job) if rank is None else Run(run).log if rank == 0 else Run(run).rank_log(rank)
    queued = find_queued_job(job) if following or not path.is_file() else None
    if not path.is_file() and not (following and queued is not None):
        if queued is None:
            raise UserError(f"{path}: no such log, and job {job} is not in the queue")
        raise UserError(f"{path}: does not exist yet: job {job} is {queued.state} ({queued.reason}); -f waits for it")

    def is_active() -> bool:
        try:
            return find_queued_job(job) is not None
        except Failure:  # The controller may be restarting; it answered the first time.
            return True

    for text in follow_log(path, is_active if following and queued is not None else lambda: False):
        typer.echo(text, nl=False)


def cancel(
    name: Name,
    signal: Annotated[
        str | None, typer.Option(help="Signal for the ranks instead: USR1 saves a checkpoint and stops.", metavar="NAME")
    ] = None,
) -> None:
    """Cancel a job. `vigil submit` with the same run folder resumes from its last checkpoint."""
    from vigil_slurm.jobs import cancel_job, find_job

    job, run = find_job(name)
    typer.echo(cancel_job(job, run, signal))


_HEADER = ("job", "run", "state", "nodes", "elapsed", "epoch", "step", "loss", "restarts", "log")
_NUMBERS = ("nodes", "elapsed", "epoch", "step", "loss", "restarts")


def _cells(job: "JobStatus") -> tuple[str, ...]:
    state = f"{job.state} ({job.reason})" if job.reason else job.state
    numbers = [_number(job.epoch), _number(job.step), "-" if job.loss is None else f"{job.loss:.4g}", str(job.restarts)]
    return (job.job, _short(job.run), state, job.nodes, job.elapsed or "-", *numbers, _short(job.log))


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _short(path: str) -> str:
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print columns at their full width, so that output piped into another command is not cut at the terminal's width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if name in _NUMBERS else cell.ljust(width)
            for cell, width, name in zip(row, widths, _HEADER, strict=True)
        ]
        typer.echo("  ".join(cells).rstrip())
