"""`vigil monitor`: one module per command."""

from types import ModuleType

import typer

from vigil.cli.monitor import agreement, drift, estimate, experiment, mine, report, review, sample, traffic, transparency

MODULES: tuple[ModuleType, ...] = (agreement, drift, estimate, experiment, mine, report, review, sample, traffic, transparency)


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    text = "Measure a model in production: samples for review, prevalence, online metrics, drift, experiments, reports."
    group = typer.Typer(help=text, no_args_is_help=True)
    for module in MODULES:
        module.register(group)
    if MODULES:
        app.add_typer(group, name="monitor")
