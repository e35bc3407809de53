"""`vigil monitor traffic`: what a traffic log has, its retention by hand, and erasure from it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.data.tables import print_table
from vigil.cli.monitor.options import From, TrafficPath, Until
from vigil_data.errors import UserError
from vigil_data.progress import Progress

if TYPE_CHECKING:
    from vigil_monitoring.traffic.summary import TrafficSummary

MAX_VALUES = 10
"""Values of a column that are printed."""


def register(group: typer.Typer) -> None:
    """Add the command to ``group``."""
    group.command("traffic")(traffic)


def traffic(
    path: TrafficPath,
    *,
    start: From = None,
    end: Until = None,
    role: Annotated[str, typer.Option(help="live or shadow.")] = "live",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    erase_id: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Erase all decisions on an item from the log. Repeatable.")
    ] = None,
    erase_author: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Erase all decisions on an author's items. Repeatable.")
    ] = None,
    keep_days: Annotated[int | None, typer.Option(min=1, help="Remove all but the last N days, today among them.")] = None,
) -> None:
    """Count a traffic log's decisions by day, bundle, policy, action and label; erase items or authors; remove old days."""
    removing = [name for name, given in (("--erase-id", erase_id), ("--erase-author", erase_author)) if given]
    removing += ["--keep-days"] if keep_days is not None else []
    if removing and (start or end or as_json):
        raise UserError(f"{removing[0]}: concerns all days of the log; leave out --from, --until and --json")
    if keep_days is not None:
        _remove_old_days(path, keep_days)
    if erase_id or erase_author:
        from vigil_monitoring.traffic.erasure import erase_traffic

        with Progress("erasing", unit="files") as progress:
            erased = erase_traffic(path, erase_id or (), erase_author or (), progress=progress)
        typer.echo(f"erased {_counted(erased.rows, 'decision')} from {_counted(erased.files, 'file')}")
    if removing:
        return
    from vigil_monitoring.traffic.reader import open_traffic
    from vigil_monitoring.traffic.summary import summarize

    with Progress("counting", unit="decisions") as progress:
        opened = open_traffic(path, start and start.date(), end and end.date(), role)
        summary = summarize(opened, progress)
    if as_json:
        typer.echo(json.dumps(asdict(summary), ensure_ascii=False, indent=2))
    else:
        _print(summary)


def _remove_old_days(path: Path, days: int) -> None:
    from vigil_serving.traffic.folder import days_of
    from vigil_serving.traffic.retention import remove_old_days

    if not days_of(path):
        raise UserError(f"{path}: is no traffic log (it has no folder day=YYYY-MM-DD); name the folder given as --log")
    typer.echo(f"removed {remove_old_days(path, days)}")


def _print(summary: "TrafficSummary") -> None:
    days = list(summary.rows_by_day)
    others = "".join(f", and {rows:,} {role} decisions (--role {role})" for role, rows in summary.other_roles.items())
    period = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    typer.echo(f"{summary.rows:,} {summary.role} decisions, {period}, {_counted(len(days), 'day')} with decisions{others}")
    typer.echo(f"{_counted(summary.files, 'file')}, {summary.bytes / 1e6:,.2f} MB")
    if summary.assumed_day:
        typer.echo("the table has no times: all rows count as the day when its file was written")
    if summary.bytes_by_day:
        print_table(
            ["day", "decisions", "MB"],
            ([day, rows, f"{summary.bytes_by_day[day] / 1e6:,.2f}"] for day, rows in summary.rows_by_day.items()),
        )
    views, known = summary.exposure
    facts = [("review", "sent to human review", summary.review), ("error", "could not be decoded", summary.errors)]
    facts.append(("exposure", f"known, {views:,.0f} views in all", known))
    for name, values in [("label", summary.labels), *summary.values.items()]:
        shown = list(values.items())[: None if name == "label" else MAX_VALUES]
        facts += [(name, value, count) for value, count in shown]
        if rest := list(values.items())[len(shown) :]:
            facts.append((name, f"{len(rest):,} other values", sum(count for _, count in rest)))
    print_table(["column", "value", "decisions", "share"], ([*fact, f"{fact[2] / summary.rows:.2%}"] for fact in facts))


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
