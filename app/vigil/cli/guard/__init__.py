"""`vigil guard`: one module per command."""

import typer

from vigil.cli.guard import folder, prompt, run


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    group = typer.Typer(help="Inspect the prompts of guards, export guards to LLM servers and score through them, and run published ones.", no_args_is_help=True)
    for module in (prompt, run, folder):
        module.register(group)
    app.add_typer(group, name="guard")
