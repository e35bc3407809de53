"""`vigil runs`, `sweep`, `track`, `lineage`, `push` and `pull`: one module per command group."""

from types import ModuleType

import typer

from vigil.cli.tracking import lineage, registry, runs, sweep, track

MODULES: tuple[ModuleType, ...] = (lineage, registry, runs, sweep, track)


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    for module in MODULES:
        module.register(app)
