"""`vigil train`: a recipe into a run folder; the same command resumes what was interrupted."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("train")(train)


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values that replace the recipe's.", metavar="KEY.PATH=VALUE")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME if not given.", metavar="DIR")] = None,
) -> None:
    """Train a recipe into a run folder, or go on where an interrupted run stopped.

    The folder holds all that the run leaves: the resolved recipe, checkpoints, metrics, environment, log, thresholds. The same
    command on the same folder resumes from the last checkpoint; a finished run is left alone.
    """
    from vigil_training.resolve import dump, resolve

    resolved = resolve(recipe, overrides or [])
    folder = run or Path("runs") / resolved.recipe.name

    from vigil_training.fit import fit

    fit(resolved.recipe, dump(resolved), folder)
    typer.echo(f"next: vigil evaluate {folder}")
