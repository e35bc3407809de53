"""`vigil monitor report`: the results of a folder as one page, and as Prometheus metrics."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.monitor.options import From, Until

if TYPE_CHECKING:
    from vigil_monitoring.report import TrafficHistory


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

    if to is None and prometheus is None:
        raise UserError(
            "nothing to write: name a page with --to FILE.html, a file of metrics with --prometheus FILE.prom, or both"
        )
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


def _history(traffic: Path, start: datetime | None, until: datetime | None) -> "TrafficHistory":
    from vigil_data.progress import Progress
    from vigil_monitoring.report import read_history
    from vigil_monitoring.traffic import open_traffic

    opened = open_traffic(traffic, start.date() if start else None, until.date() if until else None)
    with Progress("reading decisions", unit="decisions") as progress:
        return read_history(opened, progress)
