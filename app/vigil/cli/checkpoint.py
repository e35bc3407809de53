"""`vigil checkpoint`: inspect, consolidate, soup."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    group = typer.Typer(no_args_is_help=True, help="Inspect, verify, consolidate and average checkpoints.")
    group.command("inspect")(inspect)
    group.command("consolidate")(consolidate)
    group.command("soup")(soup)
    app.add_typer(group, name="checkpoint")


def inspect(
    path: Annotated[Path, typer.Argument(help="A run's folder, or a checkpoint's.", metavar="RUN|CHECKPOINT")],
    verify: Annotated[bool, typer.Option("--verify", help="Compare the SHA-256 of all files.")] = False,
) -> None:
    """Show a run's checkpoints or the contents of one checkpoint, and fail if a file is damaged.

    Files are compared with the manifest by size; with --verify also by SHA-256.
    """
    from rich.console import Console

    from vigil_data.errors import Failure
    from vigil_data.progress import Progress
    from vigil_training.checkpoint.summary import is_checkpoint, summarize, summarize_all, table_of_run, tables_of_checkpoint

    if is_checkpoint(path):
        with Progress("reading"):
            summaries = [summarize(path, verify)]
        tables = tables_of_checkpoint(summaries[0])
    else:
        from vigil_training.runs.run import Run

        run = Run(path)
        with Progress("reading"):
            summaries = summarize_all(run.checkpoints, verify)
        tables = [table_of_run(summaries, run.recipe.training.mode)] if summaries else []
    for table in tables:
        Console().print(table)
    if not summaries:
        typer.echo(f"{path}: no checkpoint yet")
    if problems := [problem for summary in summaries for problem in summary.problems.values()]:
        raise Failure("\n".join(problems))


def consolidate(
    path: Annotated[Path, typer.Argument(help="A run's folder, or a checkpoint's.", metavar="RUN|CHECKPOINT")],
    to: Annotated[Path, typer.Option(help="File to write; an existing one is replaced.", metavar="FILE.safetensors")],
    checkpoint: Annotated[str, typer.Option(help="Checkpoint of a run: best, last, or a name such as step-00000120.")] = "best",
) -> None:
    """Write the weights of all ranks into one safetensors file, and report the ranks that held them."""
    from rich.console import Console
    from rich.table import Table

    from vigil_data.progress import Progress
    from vigil_training.checkpoint.consolidate import consolidate as write
    from vigil_training.checkpoint.summary import is_checkpoint

    with Progress("consolidating"):
        report = write(path if is_checkpoint(path) else _find(path, checkpoint), to)
    table = Table("tensors", "count", "elements", "from ranks")
    groups = {
        "trained": [e for e in report.entries if e.tied_to is None and e.trained],
        "frozen": [e for e in report.entries if e.tied_to is None and not e.trained and not e.buffer],
        "buffers": [e for e in report.entries if e.tied_to is None and e.buffer],
        "tied": [e for e in report.entries if e.tied_to is not None],
    }
    for name, entries in groups.items():
        ranks = sorted({rank for entry in entries for rank in entry.ranks})
        elements = sum(entry.elements for entry in entries)
        table.add_row(name, str(len(entries)), f"{elements:,}", _spans(ranks))
    Console().print(table)
    typer.echo(
        f"{len(report.entries)} of {len(report.entries)} tensors found, step {report.step}, sha256 {report.written.sha256}"
    )
    typer.echo(f"weights: {to}")


def soup(
    path: Annotated[Path, typer.Argument(help="A finished run.", metavar="RUN")],
    to: Annotated[Path | None, typer.Option(help="Folder of the new run (default: RUN-soup).", metavar="DIR")] = None,
    method: Annotated[
        Literal["greedy", "uniform"],
        typer.Option(help="greedy: add checkpoints that do not make it worse; uniform: average all."),
    ] = "greedy",
    count: Annotated[
        int | None, typer.Option(min=2, help="Best checkpoints to consider (default: all with a validation).")
    ] = None,
) -> None:
    """Average the weights of a run's best checkpoints into a new run, which is evaluated and exported like any other.

    Checkpoints are compared by the recipe's training.monitor on the validation split; a run keeps checkpoint.keep_best of them.
    A greedy soup is never worse there than the best checkpoint. The new run is calibrated and has thresholds of its own.
    """
    from rich.console import Console
    from rich.table import Table

    from vigil_data.progress import Progress
    from vigil_training.runs.run import Run
    from vigil_training.runs.soup import make_soup

    run = Run(path)
    with Progress("soup", unit="validations") as progress:
        made = make_soup(run, to or path.with_name(f"{path.name}-soup"), method, count, progress)
    table = Table("checkpoint", f"{made.monitor} alone", "soup with it", "included")
    for each in made.ingredients:
        table.add_row(each.path.name, f"{each.value:.6g}", f"{each.soup:.6g}", "yes" if each.included else "no")
    Console().print(table)
    taken = sum(each.included for each in made.ingredients)
    best = made.ingredients[0].value
    if taken == 1:
        typer.echo("no average is better than the best checkpoint, so the new run has this one")
    typer.echo(
        f"soup of {taken} of {len(made.ingredients)} checkpoints: {made.monitor} {made.value:.6g}; the best alone {best:.6g}"
    )
    typer.echo(f"next: vigil evaluate {made.run.path}")


def _find(path: Path, checkpoint: str) -> Path:
    """Return the folder of a checkpoint of the run ``path``."""
    from vigil_data.errors import UserError
    from vigil_training.checkpoint.reader import best_checkpoint, last_checkpoint, list_checkpoints
    from vigil_training.runs.run import Run

    run = Run(path)
    if checkpoint == "best":
        return best_checkpoint(run.checkpoints, run.recipe.training.mode)
    if checkpoint == "last":
        return last_checkpoint(run.checkpoints)
    checkpoints = {folder.name: folder for folder in list_checkpoints(run.checkpoints)}
    if checkpoint not in checkpoints:
        names = ", ".join(["best", "last", *checkpoints]) if checkpoints else "no checkpoint yet"
        raise UserError(f"--checkpoint {checkpoint}: {path} has {names}")
    return checkpoints[checkpoint]


def _spans(ranks: list[int]) -> str:
    """Return ``0-3, 7`` for 0, 1, 2, 3, 7."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
