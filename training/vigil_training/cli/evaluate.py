"""`vigil evaluate`: a run's numbers on a split, as a table here and as a report in the run folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from vigil_training.evaluate import Evaluation


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("evaluate")(evaluate)


def evaluate(
    run: Annotated[Path, typer.Argument(help="The run folder.", metavar="RUN")],
    data: Annotated[Path | None, typer.Option(help="The dataset; the run's own if not given.", metavar="DATASET")] = None,
    split: Annotated[str, typer.Option(help="Which of its splits.")] = "test",
    checkpoint: Annotated[str, typer.Option(help="best, last, or the path of a checkpoint.")] = "best",
    only: Annotated[str, typer.Option(help="Modalities that the model may see, such as text,image; all if not given.")] = "",
) -> None:
    """Measure a run on a split: predictions, numbers and a report of one HTML file."""
    from vigil_data.errors import UserError
    from vigil_data.items import MODALITIES, Modality

    modalities = [name.strip() for name in only.split(",") if name.strip()]
    if wrong := [name for name in modalities if name not in MODALITIES]:
        raise UserError(f"--only {only}: {', '.join(wrong)} is not a modality; the modalities are {', '.join(MODALITIES)}")

    from vigil_training.run import Run

    opened = Run(run)

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from vigil_data.dataset import Dataset
    from vigil_training.evaluate import evaluate as measure

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"predicting {split}", total=None)
        evaluation = measure(
            opened,
            Dataset(data) if data is not None else None,
            split,
            checkpoint=checkpoint,
            only=cast("list[Modality]", modalities),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    _show(evaluation)


def _show(evaluation: "Evaluation") -> None:
    """Print a row for each label, and where the report lies."""
    from rich.console import Console
    from rich.table import Table

    overall, rate = evaluation.findings.overall, evaluation.findings.false_positive_rate
    heads = (
        "known",
        "positive",
        "AP",
        "AUROC",
        "threshold",
        "F1",
        f"recall at {rate:.0%} FPR" if rate >= 0.01 else f"recall at FPR {rate:g}",
    )
    table = Table("label")
    for head in heads:
        table.add_column(head, justify="right")
    for name, found in overall.labels.items():
        numbers = (found.average_precision, found.auroc, found.threshold, found.f1, found.recall_at_fpr)
        table.add_row(name, str(found.known), str(found.positive), *map(_number, numbers))
    macro = [_number(overall.macro[metric].value) for metric in ("average_precision", "auroc", "f1", "recall_at_fpr")]
    table.add_section()
    table.add_row("mean over labels", "", "", *macro[:2], "", *macro[2:])
    console = Console()
    console.print(table)
    if evaluation.refused:
        console.print(f"{len(evaluation.refused)} items could not be decoded and are in none of the numbers")
    typer.echo(f"report: {evaluation.folder / 'report.html'}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
