"""`vigil checkpoint inspect` and `vigil checkpoint consolidate`: what a run has saved, and one file of its weights."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    group = typer.Typer(no_args_is_help=True, help="Look at checkpoints, check them, and put their pieces together.")
    group.command("inspect")(inspect)
    group.command("consolidate")(consolidate)
    app.add_typer(group, name="checkpoint")


def inspect(
    path: Annotated[Path, typer.Argument(help="A run's folder, or a checkpoint's.", metavar="RUN|CHECKPOINT")],
    verify: Annotated[bool, typer.Option("--verify", help="Read all files and compare their SHA-256.")] = False,
) -> None:
    """Show what a run has saved or what a checkpoint holds, and fail if a file is damaged.

    Files are compared with the manifest by size; with --verify also by SHA-256.
    """
    from rich.console import Console

    from vigil_data.errors import Failure
    from vigil_training.checkpoint.summary import is_checkpoint, summarize, summarize_all, table_of_run, tables_of_checkpoint

    if is_checkpoint(path):
        rows = [summarize(path, verify)]
        tables = tables_of_checkpoint(rows[0])
    else:
        from vigil_training.runs.run import Run

        run = Run(path)
        rows = summarize_all(run.checkpoints, verify)
        tables = [table_of_run(rows, run.recipe.training.mode)] if rows else []
    for table in tables:
        Console().print(table)
    if not rows:
        typer.echo(f"{path}: no checkpoint yet")
    if problems := [problem for row in rows for problem in row.problems.values()]:
        raise Failure("\n".join(problems))


def consolidate(
    path: Annotated[Path, typer.Argument(help="A run's folder, or a checkpoint's.", metavar="RUN|CHECKPOINT")],
    to: Annotated[Path, typer.Option(help="The file to write; an older one is replaced.", metavar="FILE.safetensors")],
    checkpoint: Annotated[str, typer.Option(help="Of a run: best, last, or the name of a checkpoint, step-….")] = "best",
) -> None:
    """Put the weights of all ranks into one file, and say where each came from."""
    from rich.console import Console
    from rich.table import Table

    from vigil_training.checkpoint.consolidate import consolidate as write
    from vigil_training.checkpoint.summary import is_checkpoint

    audit = write(path if is_checkpoint(path) else _find(path, checkpoint), to)
    table = Table("tensors", "count", "elements", "from ranks")
    groups = {
        "trained": [e for e in audit.entries if e.tied_to is None and e.trained],
        "frozen": [e for e in audit.entries if e.tied_to is None and not e.trained and not e.buffer],
        "buffers": [e for e in audit.entries if e.tied_to is None and e.buffer],
        "tied": [e for e in audit.entries if e.tied_to is not None],
    }
    for name, entries in groups.items():
        ranks = sorted({rank for entry in entries for rank in entry.ranks})
        elements = sum(entry.elements for entry in entries)
        table.add_row(name, str(len(entries)), f"{elements:,}", _spans(ranks))
    Console().print(table)
    typer.echo(f"{len(audit.entries)} of {len(audit.entries)} tensors found, step {audit.step}, sha256 {audit.written.sha256}")
    typer.echo(f"weights: {to}")


def _find(path: Path, checkpoint: str) -> Path:
    """The folder of a checkpoint of the run ``path``."""
    from vigil_data.errors import UserError
    from vigil_training.checkpoint.reader import best_checkpoint, last_checkpoint, list_checkpoints
    from vigil_training.runs.run import Run

    run = Run(path)
    if checkpoint == "best":
        return best_checkpoint(run.checkpoints, run.recipe.training.mode)
    if checkpoint == "last":
        return last_checkpoint(run.checkpoints)
    there = {folder.name: folder for folder in list_checkpoints(run.checkpoints)}
    if checkpoint not in there:
        raise UserError(f"--checkpoint {checkpoint}: {path} has best, last, {', '.join(there) or 'and no checkpoint yet'}")
    return there[checkpoint]


def _spans(ranks: list[int]) -> str:
    """``0-3, 7`` for 0, 1, 2, 3, 7."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
