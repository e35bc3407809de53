"""`vigil monitor report`: the results of a folder as one page, as Prometheus metrics, and in Weights & Biases."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.monitor.options import From, Until

if TYPE_CHECKING:
    from vigil_monitoring.report import Dashboard, TrafficHistory
    from vigil_training.recipe.specs import TrackingSpec


def register(group: typer.Typer) -> None:
    """Add the command to ``group``."""
    group.command("report")(report)


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Result files that vigil monitor wrote with --to.")],
    *,
    to: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write the page there.")] = None,
    prometheus: Annotated[
        Path | None,
        typer.Option(metavar="FILE.prom", help="Write the numbers there for the node exporter's textfile collector."),
    ] = None,
    wandb: Annotated[
        str | None,
        typer.Option(
            metavar="[ENTITY/]PROJECT",
            help="Add the windows that are new to FOLDER's run in this project of Weights & Biases; offline without an API key.",
        ),
    ] = None,
    traffic: Annotated[
        Path | None, typer.Option(metavar="TRAFFIC", help="Show volumes and changes of model, policy and thresholds, too.")
    ] = None,
    start: From = None,
    until: Until = None,
) -> None:
    """Show prevalence, online metrics, volumes, reviewers, drift, experiments and changes on one self-contained page."""
    from vigil_data.errors import UserError
    from vigil_data.filesystem import make_folder
    from vigil_monitoring.report import read_dashboard, write_page, write_prometheus
    from vigil_monitoring.report.page import remarks

    if to is None and prometheus is None and wandb is None:
        raise UserError(
            "nothing to write: name a page with --to FILE.html, a file of metrics with --prometheus FILE.prom, or a project of "
            "Weights & Biases with --wandb PROJECT"
        )
    if wandb is not None:
        from vigil.workflows.monitor.tracked_report import tracked_project

        project = tracked_project(wandb)
    if prometheus is not None and prometheus.suffix != ".prom":
        raise UserError(f"{prometheus}: the textfile collector reads files that end in .prom")
    if traffic is None and (start is not None or until is not None):
        raise UserError("--from and --until choose days of the traffic; add --traffic TRAFFIC")
    for file in (to, prometheus):
        if file is not None:
            make_folder(file.parent)
    dashboard = read_dashboard(folder, None if traffic is None else _history(traffic, start, until))
    for remark in remarks(dashboard):
        typer.echo(f"{remark.topic}: {remark.text}")
    if dashboard.other:
        typer.echo(f"not shown: {', '.join(dashboard.other)}")
    for file, write in ((to, write_page), (prometheus, write_prometheus)):
        if file is not None:
            write(dashboard, file)
            typer.echo(str(file))
    if wandb is not None:
        _track(folder, dashboard, project)


def _track(folder: Path, dashboard: "Dashboard", project: "TrackingSpec") -> None:
    from vigil.workflows.monitor.tracked_report import track_report

    tracked = track_report(folder, dashboard, project)
    if tracked.mode == "disabled":
        typer.echo(f"W&B: not tracked: {tracked.reason}")
        return
    typer.echo(
        f"W&B: run {tracked.run_id} of {project.project}: {tracked.values} new values in {tracked.windows} windows, "
        f"{tracked.mode} ({tracked.reason})"
    )
    if tracked.changed:
        typer.echo(
            f"W&B: {tracked.changed} values have changed since they were logged; the curves keep the first ones, the table "
            "`estimates` has the newest"
        )


def _history(traffic: Path, start: datetime | None, until: datetime | None) -> "TrafficHistory":
    from vigil_data.progress import Progress
    from vigil_monitoring.report import read_history
    from vigil_monitoring.traffic import open_traffic

    opened = open_traffic(traffic, start.date() if start else None, until.date() if until else None)
    with Progress("reading decisions", unit="decisions") as progress:
        return read_history(opened, progress)
