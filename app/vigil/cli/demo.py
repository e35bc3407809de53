"""`vigil demo`: everything that Vigil does, once, on data that it makes itself."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vigil.workflows.demo_pipeline import Stage, Summary


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("demo")(demo)


def demo(
    folder: Annotated[Path, typer.Option("--dir", help="Where everything goes.", metavar="DIR")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of the dataset and of the trainings.")] = 0,
) -> None:
    """Make a tri-modal dataset, train, compile a policy, evaluate, compare, export, verify, test and score; minutes on two cores.

    Each stage is a command that is printed before it runs, so it shows how Vigil is used. Nothing is downloaded. What was done
    already is not done again: an interrupted demonstration goes on with the same command.
    """
    from vigil.workflows.demo_pipeline import demonstrate

    _show(demonstrate(folder, seed, _run), folder)


def _run(stage: "Stage") -> None:
    """Run a stage's command in this process, as the command line would."""
    from vigil.cli import build

    typer.secho(f"\n$ vigil {shlex.join(stage.command)}", bold=True)
    if status := build()(list(stage.command), standalone_mode=False):
        raise typer.Exit(int(status))


def _show(summary: "Summary", folder: Path) -> None:
    """Print the time of each stage, what was found, and where it lies."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    times = Table("stage", box=None, pad_edge=False, header_style="bold")
    times.add_column("seconds", justify="right")
    for stage, seconds in summary.seconds.items():
        times.add_row(stage, f"{seconds:.1f}")
    times.add_row("all", f"{sum(summary.seconds.values()):.1f}", style="bold")
    found = Table("trained on", box=None, pad_edge=False, header_style="bold")
    found.add_column("macro average precision (test)", justify="right")
    found.add_row("all three, fused", f"{summary.fused_macro_ap:.3f}", style="bold")
    for modality, value in summary.single_macro_ap.items():
        found.add_row(f"{modality} alone", f"{value:.3f}")
    for table in (times, found):
        console.print()
        console.print(table)
    lines = {
        **{name: getattr(summary, name) for name in ("report", "comparison", "suite", "bundle")},
        "summary": folder / "summary.json",
    }
    typer.echo("\n" + "\n".join(f"{name + ':':<12}{path}" for name, path in lines.items()))
