"""`vigil monitor drift`: compare windows of traffic with a reference, as often as wanted."""

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.monitor.options import ResultFile, TrafficPath

if TYPE_CHECKING:
    from vigil_monitoring.drift.calibration import ReviewedItems
    from vigil_monitoring.drift.results import DriftResults
    from vigil_monitoring.traffic import Traffic

MAX_ALARMS = 10
"""Most alarms printed."""

MAX_ROWS = 20
"""Most rows of the table of prevalence."""


def register(group: typer.Typer) -> None:
    """Add the command to ``group``."""
    group.command("drift")(drift)


def drift(
    path: TrafficPath,
    *,
    reference: Annotated[
        str,
        typer.Option(
            metavar="PERIOD|PATH",
            help="Days of the traffic such as 2026-10-01..2026-10-28, other traffic or scores, or a bundle.",
        ),
    ],
    by: Annotated[str | None, typer.Option(metavar="A,B", help="Columns to slice by, such as language,content_type.")] = None,
    window: Annotated[str, typer.Option(help="day or week.")] = "day",
    start: Annotated[
        str | None, typer.Option("--from", metavar="DATE", help="First day to test (default: the day after the reference).")
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="Last day to test (default: the day before the newest, which may be incomplete)."),
    ] = None,
    role: Annotated[str, typer.Option(help="live or shadow.")] = "live",
    smallest: Annotated[
        float, typer.Option(metavar="FACTOR", help="A change of the odds by less than this factor is negligible.")
    ] = 1.25,
    alpha: Annotated[float, typer.Option(help="Largest probability of any false alarm, over all tests and looks.")] = 0.05,
    queue: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Queue whose reviews test the calibration; repeatable.")
    ] = None,
    reviews: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Decisions about the queue of the same place; repeatable.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of daily summaries (default: .drift in the log).")
    ] = None,
    to: ResultFile = None,
    fail_on_alarm: Annotated[bool, typer.Option("--fail-on-alarm", help="Exit with 1 if there is an alarm.")] = False,
) -> None:
    """Find drift of scores, decisions, inputs, prevalence and calibration, by label and slice; see docs/monitor-drift.md.

    Run it every day: the probability of any false alarm, ever, is at most alpha.
    """
    from dataclasses import asdict

    from vigil_data.errors import UserError
    from vigil_data.progress import Progress
    from vigil_monitoring.drift import DriftSettings, find_drift
    from vigil_monitoring.drift.detection import check_settings
    from vigil_monitoring.drift.references import open_reference
    from vigil_monitoring.results import Period, write_result
    from vigil_monitoring.traffic import open_traffic

    if window not in {"day", "week"}:
        raise UserError(f"--window {window}: must be day or week")
    columns = tuple(dict.fromkeys(name.strip() for name in (by or "").split(",") if name.strip()))
    settings = DriftSettings(columns, "day" if window == "day" else "week", smallest, alpha)
    check_settings(settings)
    first, last = _date("--from", start), _date("--until", until)
    traffic = open_traffic(path, role=role)
    source = open_reference(reference, path, role)
    reviewed = _reviewed(traffic, columns, queue or [], reviews or [])
    with Progress("reading traffic", unit="decisions") as progress:
        results = find_drift(
            *(traffic, source, settings),
            start=first,
            end=last,
            reviewed=reviewed,
            cache=path / ".drift" if cache is None and path.is_dir() else cache,
            progress=progress,
        )
    show(results)
    if to is not None:
        period = Period(date.fromisoformat(results.windows[0]), date.fromisoformat(results.last))
        write_result(to, "drift", period, asdict(results))
        typer.echo(f"result: {to}")
    if fail_on_alarm and results.alarms:
        raise typer.Exit(1)


def show(results: "DriftResults") -> None:
    """Print one table of kinds, one of prevalence, and each alarm in a sentence."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vigil_monitoring.drift.results import percent

    # Piped tables are not cut to 80 columns.
    console = Console() if Console().is_terminal else Console(width=160)
    head = f"{len(results.windows)} {results.window}s ({results.windows[0]} to {results.last}), {sum(results.items):,} decisions"
    console.print(f"{head}, compared with {results.reference}", markup=False, highlight=False)
    table = Table("kind", title="tests", title_justify="left")
    for name in ("tests", "alarms", "smallest p (corrected)"):
        table.add_column(name, justify="right")
    for kind in results.kinds:
        table.add_row(kind.kind, str(kind.streams), str(kind.alarms), f"{kind.p_values[-1]:.2g}")
    console.print(table)
    if results.label_shift:
        table = Table("label", "slice", title="prevalence in the last windows, without reviews", title_justify="left")
        for name in ("before", "mean probability", "if only prevalence changed", "interval", "black box", "unexplained"):
            table.add_column(name, justify="right")
        for row in results.label_shift[:MAX_ROWS]:
            between = "-" if row.interval is None else f"{percent(row.interval.low)} to {percent(row.interval.high)}"
            box = "-" if row.black_box is None else percent(row.black_box)
            parts = (percent(row.before), percent(row.mean_probability), percent(row.shifted), between, box)
            table.add_row(Text(row.label), Text(row.slice), *parts, f"{percent(row.unexplained)} of {percent(row.distance)}")
        console.print(table)
    for note in results.notes:
        console.print(f"- {note}", markup=False, highlight=False)
    for alarm in results.alarms[:MAX_ALARMS]:
        console.print(Text("alarm ", style="bold red"), end="")
        console.print(f"[{alarm.kind}] {alarm.sentence}", markup=False, highlight=False)
        if alarm.examples:
            console.print(f"  examples: {', '.join(alarm.examples)}", markup=False, highlight=False)
    if len(results.alarms) > MAX_ALARMS:
        console.print(f"… and {len(results.alarms) - MAX_ALARMS} more alarms; --to writes them all")
    if not results.alarms:
        console.print("no drift", highlight=False)


def _date(option: str, given: str | None) -> date | None:
    from vigil_data.errors import UserError

    try:
        return None if given is None else date.fromisoformat(given)
    except ValueError:
        raise UserError(f"{option} {given}: must be a day such as 2026-11-29") from None


def _reviewed(traffic: "Traffic", by: tuple[str, ...], queues: list[Path], reviews: list[Path]) -> "ReviewedItems | None":
    """Return the reviewed items of all pairs of a queue and its decisions; ``None`` without any."""
    from vigil_data.errors import UserError
    from vigil_monitoring.drift.calibration import reviewed_items
    from vigil_monitoring.queues.queue import read_queue
    from vigil_monitoring.reviews.answers import read_reviews

    if len(queues) != len(reviews):
        raise UserError(f"{len(queues)} --queue and {len(reviews)} --reviews: give each queue the file of its decisions")
    if not queues:
        return None
    pairs = []
    for queue_file, review_file in zip(queues, reviews, strict=True):
        queue = read_queue(queue_file)
        pairs.append((queue, read_reviews(review_file, queue)))
    return reviewed_items(pairs, traffic.labels, by)
