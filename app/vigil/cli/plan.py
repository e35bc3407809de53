"""`vigil plan`: memory on each GPU and length of the epochs, before anything is queued."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vigil_training.planning.plan import RunPlan


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("plan")(plan)


def plan(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values that replace the recipe's.", metavar="KEY.PATH=VALUE")
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines (default: the recipe's).")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs on each machine (default: the recipe's).")] = None,
    memory: Annotated[float | None, typer.Option(help="Memory of each GPU in GiB.", metavar="GIB")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON, in bytes.")] = False,
) -> None:
    """Print the memory that each strategy needs on each GPU, whether it fits, and the steps of an epoch.

    Nothing is trained. The model is built without memory for its weights, and activations are measured by a forward pass over the
    most expensive batch that computes nothing. Without --memory there is no verdict.
    """
    import json

    from vigil_data.errors import UserError
    from vigil_data.progress import Progress
    from vigil_training.planning.plan import plan_run
    from vigil_training.recipe.resolve import resolve_recipe

    if memory is not None and memory <= 0:
        raise UserError(f"--memory {memory:g}: give the GiB of one GPU, more than 0")
    with Progress("planning"):
        report = plan_run(resolve_recipe(recipe, overrides or []).recipe, nodes, gpus, memory)
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=1))
    else:
        _show(report)


def _show(report: "RunPlan") -> None:
    """Print the tables and the verdict."""
    from rich.console import Console
    from rich.table import Table

    from vigil_training.planning.plan import gib

    states = ["weights", "gradients", "optimizer", "masters", *["average"] * any(row.state.average for row in report.rows)]
    # Piped tables are wider than 80 columns.
    console = Console() if Console().is_terminal else Console(width=130)
    table = Table("strategy", *states, "activations", "buffers", "total", "host", "fits", title="GiB on each GPU")
    for row in report.rows:
        figures = (*(getattr(row.state, name) for name in states), row.activations, sum(row.buffers.values()), row.total)
        fits = "" if row.fits is None else ("yes" if row.fits else "no")
        name = f"{row.name} (recipe)" if row.chosen else row.name
        table.add_row(name, *(gib(n) for n in figures), gib(row.host) if row.host else "", fits)
    console.print(table)
    for line in (*report.facts(), *report.notes):
        typer.echo(line)
    typer.echo(report.verdict)
