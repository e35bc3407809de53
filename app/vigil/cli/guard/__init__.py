"""`vigil guard`: one module per command."""

import typer

from vigil.cli.guard import folder, prompt, run


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    text = "Inspect the prompts of guards, export them for LLM servers and score through these, and run published guards."
    group = typer.Typer(help=text, no_args_is_help=True)
    for module in (prompt, run, folder):
        module.register(group)
    app.add_typer(group, name="guard")
