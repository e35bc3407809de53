"""`vigil init`, `vigil doctor` and `vigil demo`: the first commands on a new machine."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vigil.workflows.demo_pipeline import Stage, Summary

STYLES = {"ok": "green", "warn": "yellow", "missing": "cyan", "broken": "red"}


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("init")(init)
    app.command("doctor")(doctor)
    group = typer.Typer(invoke_without_command=True)
    group.callback()(demo)
    group.command("loop")(demo_loop)
    app.add_typer(group, name="demo")


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The project's folder, new or empty.")],
) -> None:
    """Start a small project: example rows, a recipe, a taxonomy, a policy, and a README with the commands to run.

    The recipe trains in under a minute on two cores, with nothing downloaded. Replace the rows by your own.
    """
    from vigil.workflows.new_project import commands, create_project

    project = create_project(folder)
    for file in project.files:
        typer.echo(file)
    typer.echo(f"\nnext: cd {shlex.quote(str(folder))}")
    for command in commands(project.name):
        typer.echo(f"  {command}")


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
    import_torch: Annotated[bool, typer.Option("--torch", help="Ask torch which devices it sees; takes some seconds.")] = False,
) -> None:
    """Check this machine: Python, libraries, CPU, GPUs, Slurm, W&B, disk, and what each extra enables.

    Each line has a status: ok, warn, missing (optional and absent) or broken. Exit status 1 if something needed is broken.
    """
    from vigil.workflows.doctor import run_checks

    checks = []
    for check in run_checks(import_torch=import_torch):
        checks.append(check)
        if not as_json:
            typer.secho(f"{check.status:<8}", fg=STYLES[check.status], nl=False)
            typer.echo(f"{check.name:<17}{check.detail}" + (f"; fix: {check.fix}" if check.fix else ""))
    broken = sum(check.status == "broken" for check in checks)
    if as_json:
        from dataclasses import asdict

        typer.echo(json.dumps({"broken": broken, "checks": [asdict(check) for check in checks]}, indent=1))
    if broken:
        raise typer.Exit(1)


def demo(
    context: typer.Context,
    folder: Annotated[Path, typer.Option("--dir", help="The folder to write.", metavar="DIR")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the dataset and of training.")] = 0,
) -> None:
    """Generate a tri-modal dataset, train, compile a policy, evaluate, compare, export, verify, test and score; takes minutes.

    Each stage is a command that is printed before it runs, so that you can run it yourself. Nothing is downloaded. The same
    command resumes an interrupted demonstration after its last finished stage.
    """
    if context.invoked_subcommand is not None:
        return
    from vigil.cli.loop import run_command
    from vigil.workflows.demo_pipeline import BACKGROUND_LOG, run_demo

    vigil = context.find_root().command
    cores = len(os.sched_getaffinity(0))
    # Two lanes of stages share the cores; more threads than cores would wait for each other at every operation.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores // 2, 1)))

    def run(stage: "Stage", number: int, total: int) -> None:
        typer.secho(f"\n[{number}/{total}] $ vigil {shlex.join(stage.command)}", bold=True)
        start = time.perf_counter()
        run_command(vigil, stage.command)
        typer.echo(f"[{number}/{total}] {stage.name}: {time.perf_counter() - start:.1f} s")

    def start(log: Path) -> "subprocess.Popen[str]":
        program = [sys.executable, "-c", "from vigil.command_process import run_commands; run_commands()", str(log)]
        return subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603 (our own program)

    if cores > 1:
        typer.echo(
            f"baselines of one modality and functional tests run at the same time; their output is in {folder / BACKGROUND_LOG}"
        )
    _show_summary(run_demo(folder, seed, run, start if cores > 1 else None), folder)


def demo_loop(
    context: typer.Context,
    folder: Annotated[Path, typer.Option("--dir", help="The folder to write.", metavar="DIR")] = Path("runs/demo-loop"),
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the traffic and of training.")] = 0,
    weeks: Annotated[int, typer.Option(min=1, help="Weeks of traffic; a slang and a picture style are new in the fifth.")] = 12,
) -> None:
    """Simulate weeks of traffic whose truth is known, and run the improvement loop on it: drift, reviews, retraining, promotion.

    The dashboard at its end has the truth and the loop's estimates in one picture. The same command resumes an interrupted run.
    """
    from vigil.cli.loop import run_command
    from vigil.workflows.loop.demonstration import run_loop_demo

    vigil = context.find_root().command

    def run(command: Sequence[str]) -> None:
        typer.secho(f"\n$ vigil {shlex.join(command)}", bold=True)
        run_command(vigil, command)

    typer.echo(f"\ntruth and estimates: {run_loop_demo(folder, seed, run, weeks)}")


def _show_summary(summary: "Summary", folder: Path) -> None:
    """Print the time of each stage, the metrics, and where the results are."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    times = Table("stage", box=None, pad_edge=False, header_style="bold")
    times.add_column("seconds", justify="right")
    for stage, seconds in summary.seconds.items():
        times.add_row(stage, f"{seconds:.1f}")
    times.add_row("all", f"{summary.total_seconds:.1f}", style="bold")
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
