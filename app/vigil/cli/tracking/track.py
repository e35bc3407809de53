"""`vigil track sync` and `vigil track status`: tracked runs that were written offline."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vigil_training.runs.run import Run
    from vigil_training.tracking.sync.sending import Sent, Unsent


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    group = typer.Typer(no_args_is_help=True, help="Send runs that were tracked offline to Weights & Biases.")
    group.command("sync")(sync)
    group.command("status")(status)
    app.add_typer(group, name="track")


def sync(
    runs: Annotated[list[Path] | None, typer.Argument(metavar="RUN…", help="Run folders.", show_default=False)] = None,
    *,
    every: Annotated[Path | None, typer.Option("--all", metavar="DIR", help="All tracked runs in this folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be sent; the server is not asked.")] = False,
    lineage: Annotated[
        bool, typer.Option(" /--no-artifacts", help="Leave the lineage out: no artifacts are sent.", show_default=False)
    ] = True,
    weights: Annotated[
        bool, typer.Option("--weights", help="Send the files of checkpoints; else only references to them.")
    ] = False,
    project: Annotated[
        str | None,
        typer.Option(metavar="[ENTITY/]PROJECT", help="Where to (default: where the run was sent before, else its recipe's)."),
    ] = None,
) -> None:
    """Send what runs have written offline to Weights & Biases: the parts of each run in order, then its lineage as artifacts.

    It can be repeated, also after it was killed and from a copy of a run: what the server has is not sent again. The dataset, the
    weights and the items stay where they are; what is sent of an evaluation follows tracking.content. Of a run that is being
    trained only the parts of earlier starts are sent.
    """
    from vigil_data.errors import Failure, UserError
    from vigil_data.lineage import read_ledger
    from vigil_data.progress import Progress
    from vigil_training.runs.run import Run
    from vigil_training.tracking.sync.sending import find_unsent, in_order, sync_run, tracked_runs

    if (every is None) == (not runs):
        raise UserError("name the runs to send, or the folder that holds them with --all DIR; not both")
    graph = read_ledger()
    found = in_order(tracked_runs(every) if every is not None else [Run(path) for path in runs or ()], graph)
    if not found:
        typer.echo(f"{every}: no tracked run")
    problems = []
    for run in found:
        if dry_run:
            _print_unsent(run, find_unsent(run, graph, project=project, lineage=lineage))
            continue
        with Progress(str(run.path), unit="uploads") as progress:
            try:
                sent = sync_run(run, project=project, lineage=lineage, weights=weights, graph=graph, progress=progress)
            except (Failure, UserError) as error:
                if len(found) == 1:
                    raise
                problems.append(str(error))  # The others are sent.
                continue
        _print_sent(run, sent)
        problems += sent.waiting
    if problems:
        raise Failure("\n".join(problems))


def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with runs, or a run.")] = Path("runs"),
) -> None:
    """List the tracked runs in a folder with what of them has not been sent, from local records alone."""
    from rich.console import Console
    from rich.table import Table

    from vigil_data.lineage import read_ledger
    from vigil_training.tracking.sync.sending import find_unsent, tracked_runs

    found, graph = tracked_runs(folder), read_ledger()
    if not found:
        typer.echo(f"{folder}: no tracked run")
        return
    table = Table("run", "id", "unsent parts", "unsent lineage", "state", box=None, header_style="bold")
    waiting = 0
    for run in found:
        unsent = find_unsent(run, graph)
        waiting += bool(unsent)
        state = f"running ({unsent.running})" if unsent.running else "to send" if unsent else "sent"
        table.add_row(str(run.path), run.run_id, str(len(unsent.parts)), str(len(unsent.steps)), state)
    Console().print(table)
    if waiting:
        typer.echo(f"{waiting} of {len(found)} have something to send: `vigil track sync --all {folder}`")


def _print_unsent(run: "Run", unsent: "Unsent") -> None:
    uses = sum(step.bundle is not None for step in unsent.steps)
    counts = _counts(len(unsent.parts), len(unsent.steps) - uses, uses)
    typer.echo(f"{run.path}: {counts}")
    for part in unsent.parts:
        typer.echo(f"  {part.parent.name}  {part.stat().st_size:,} bytes")
    for step in unsent.steps:
        typer.echo(f"  {step}")
    _print_notes(unsent)


def _print_sent(run: "Run", sent: "Sent") -> None:
    if not (sent.parts or sent.artifacts or sent.known or sent.uses or sent.waiting):
        typer.echo(f"{run.path}: nothing to send")
    else:
        known = f" ({len(sent.known)} were there)" if sent.known else ""
        counts = _counts(sent.parts, len(sent.artifacts), len(sent.uses))
        typer.echo(f"{run.path}: sent {counts}{known}: {sent.page}")
    _print_notes(sent)


def _print_notes(of: "Unsent | Sent") -> None:
    from vigil_data.lineage import workspace

    if of.running:
        typer.echo(f"  it is being trained ({of.running}): its last part and its lineage are sent when it has ended")
    if of.unknown:
        typer.echo(f"  the ledger of {workspace()} has no record of it; name the workspace of its training with VIGIL_WORKSPACE")


def _counts(parts: int, artifacts: int, uses: int) -> str:
    counts = [_counted(parts, "part"), _counted(artifacts, "artifact"), *([_counted(uses, "use")] if uses else [])]
    return ", ".join(counts)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
