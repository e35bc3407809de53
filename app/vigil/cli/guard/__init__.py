"""`vigil guard`: one module per command."""

import typer

from vigil.cli.guard import prompt, run


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    group = typer.Typer(help="Inspect the prompts of guards, and run published ones.", no_args_is_help=True)
    for module in (prompt, run):
        module.register(group)
    app.add_typer(group, name="guard")
