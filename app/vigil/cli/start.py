"""`vigil init` and `vigil doctor`: the first commands on a new machine."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

STYLES = {"ok": "green", "warn": "yellow", "missing": "cyan", "broken": "red"}


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("init")(init)
    app.command("doctor")(doctor)


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
        import json
        from dataclasses import asdict

        typer.echo(json.dumps({"broken": broken, "checks": [asdict(check) for check in checks]}, indent=1))
    if broken:
        raise typer.Exit(1)
