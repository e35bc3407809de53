"""`vigil demo`: the complete workflow once, on generated data."""

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vigil.workflows.demo_pipeline import Stage, Summary


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("demo")(demo)


def demo(
    folder: Annotated[Path, typer.Option("--dir", help="The folder to write.", metavar="DIR")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the dataset and of training.")] = 0,
) -> None:
    """Generate a tri-modal dataset, train, compile a policy, evaluate, compare, export, verify, test and score; takes minutes.

    Each stage is a command that is printed before it runs, so that you can run it yourself. Nothing is downloaded. The same
    command resumes an interrupted demonstration after its last finished stage.
    """
    from vigil.workflows.demo_pipeline import run_demo

    _show(run_demo(folder, seed, _run), folder)


def _run(stage: "Stage", number: int, total: int) -> None:
    """Run a stage's command in this process, as the command line would."""
    from vigil.cli import build

    typer.secho(f"\n[{number}/{total}] $ vigil {shlex.join(stage.command)}", bold=True)
    start = time.perf_counter()
    if status := build()(list(stage.command), standalone_mode=False):
        raise typer.Exit(int(status))
    typer.echo(f"[{number}/{total}] {stage.name}: {time.perf_counter() - start:.1f} s")


def _show(summary: "Summary", folder: Path) -> None:
    """Print the time of each stage, the metrics, and where the results are."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    times = Table("stage", box=None, pad_edge=False, header_style="bold")
    times.add_column("seconds", justify="right")
    for stage, seconds in summary.seconds.items():
        times.add_row(stage, f"{seconds:.1f}")
    times.add_row("all", f"{sum(summary.seconds.values()):.1f}", style="bold")
    metrics = Table("trained on", box=None, pad_edge=False, header_style="bold")
    metrics.add_column("macro average precision (test)", justify="right")
    metrics.add_row("all three, fused", f"{summary.fused_macro_ap:.3f}", style="bold")
    for modality, value in summary.single_macro_ap.items():
        metrics.add_row(f"{modality} alone", f"{value:.3f}")
    for table in (times, metrics):
        console.print()
        console.print(table)
    lines = {
        **{name: getattr(summary, name) for name in ("report", "comparison", "suite", "bundle")},
        "summary": folder / "summary.json",
    }
    typer.echo("\n" + "\n".join(f"{name + ':':<12}{path}" for name, path in lines.items()))
