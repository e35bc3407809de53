"""`vigil data`: one module per kind of work on a dataset."""

import typer

from vigil.cli.data import card, duplicates, enrichment, erasure, importing, quality, show, versions


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    group = typer.Typer(help="Import, show and generate datasets.", no_args_is_help=True)
    for module in (importing, show, card, duplicates, quality, versions, erasure, enrichment):
        module.register(group)
    app.add_typer(group, name="data")
