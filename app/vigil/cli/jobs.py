"""`vigil jobs`, `vigil logs` and `vigil cancel`: this user's runs under Slurm."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vigil_slurm.jobs import Listed

Name = Annotated[str, typer.Argument(help="A run folder, or the id of a job.", metavar="RUN|JOB")]

SHOWN = 20
"""Ended jobs that are shown unless all are asked for."""


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("jobs")(jobs)
    app.command("logs")(logs)
    app.command("cancel")(cancel)


def jobs(
    everything: Annotated[bool, typer.Option("--all", help="All ended jobs, not only the newest.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list with all that is known.")] = False,
) -> None:
    """Show this user's Vigil runs under Slurm: state, step, loss, restarts, and where the log is.

    Ended jobs are known from ~/.local/state/vigil/jobs.jsonl and their run folders; Slurm's accounting is not needed.
    """
    from vigil_slurm.jobs import listed

    rows = listed()
    ended = [row for row in rows if not row.active]
    left_out = 0 if everything or as_json else max(0, len(ended) - SHOWN)
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    if not rows:
        typer.echo("no jobs; `vigil submit` makes one")
        return
    _print_table([_HEADER, *map(_cells, [*ended[left_out:], *(row for row in rows if row.active)])])
    if left_out:
        typer.echo(f"… and {left_out} older ones: vigil jobs --all")


def logs(
    name: Name,
    following: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job has left the queue.")] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="The log of this rank alone.", metavar="N")] = None,
) -> None:
    """Print what a job's processes said: the newest job of a run, over all its restarts."""
    from vigil_data.errors import Failure, UserError
    from vigil_slurm.jobs import find, log_path, state_of
    from vigil_slurm.tail_log import follow
    from vigil_training.runs.run import Run

    job, run = find(name)
    path = log_path(run, job) if rank is None else Run(run).log if rank == 0 else Run(run).rank_log(rank)
    first = state_of(job) if following or not path.is_file() else None
    if not path.is_file() and not (following and first is not None):
        if first is None:
            raise UserError(f"{path}: no such log, and job {job} is not in the queue")
        raise UserError(f"{path}: not there yet: job {job} is {first.state} ({first.reason}); -f waits for it")

    def alive() -> bool:
        try:
            return state_of(job) is not None
        except Failure:  # A controller that restarts is no reason to stop; the first question was answered.
            return True

    for text in follow(path, alive if following and first is not None else lambda: False):
        typer.echo(text, nl=False)


def cancel(
    name: Name,
    signal: Annotated[
        str | None, typer.Option(help="Send this to the ranks instead: USR1 saves a checkpoint and stops.", metavar="NAME")
    ] = None,
) -> None:
    """End a job. `vigil submit` with the same run folder goes on from its last checkpoint."""
    from vigil_slurm.jobs import cancel as end
    from vigil_slurm.jobs import find

    job, run = find(name)
    typer.echo(end(job, Path(run), signal))


_HEADER = ("job", "run", "state", "nodes", "elapsed", "epoch", "step", "loss", "restarts", "log")
_NUMBERS = ("nodes", "elapsed", "epoch", "step", "loss", "restarts")


def _cells(row: "Listed") -> tuple[str, ...]:
    state = f"{row.state} ({row.reason})" if row.reason else row.state
    numbers = [_number(row.epoch), _number(row.step), "-" if row.loss is None else f"{row.loss:.4g}", str(row.restarts)]
    return (row.job, _shown(row.run), state, row.nodes, row.elapsed or "-", *numbers, _shown(row.log))


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _shown(path: str) -> str:
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as they must be: what is piped into another command is not cut at a terminal's edge."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if name in _NUMBERS else cell.ljust(width)
            for cell, width, name in zip(row, widths, _HEADER, strict=True)
        ]
        typer.echo("  ".join(cells).rstrip())
