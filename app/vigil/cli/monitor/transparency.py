"""`vigil monitor transparency` and `vigil monitor statements`: what the Digital Services Act asks for."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.monitor.options import From, TrafficPath, Until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vigil_data.taxonomy import Label
    from vigil_monitoring.results import Period
    from vigil_monitoring.traffic import Traffic
    from vigil_monitoring.transparency import TransparencyMapping
    from vigil_monitoring.transparency.report import TransparencyReport

Mapped = Annotated[
    str, typer.Option("--mapping", metavar="NAME", help="Labels and actions in the EU's terms: safety, comments, or a file.")
]
People = Annotated[
    Path | None, typer.Option("--human-measures", metavar="FILE", help="Measures that people took: id, time, label, action.")
]


def register(group: typer.Typer) -> None:
    """Add the commands to ``group``."""
    group.command("transparency")(transparency)
    group.command("statements")(statements)


def transparency(  # noqa: PLR0917 (the options of the command)
    traffic: TrafficPath,
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the CSV files, transparency.json and transparency.html.")],
    mapping: Mapped,
    start: From = None,
    end: Until = None,
    appeals: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Complaints: id, time, outcome, decided_by, decided. JSON Lines or CSV.")
    ] = None,
    human_measures: People = None,
    metrics: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Result of vigil monitor metrics: the accuracy of automated means."),
    ] = None,
    service: Annotated[str, typer.Option(help="Name of the service, as it is published.")] = "",
    provider: Annotated[str, typer.Option(help="Name of its provider.")] = "",
    k: Annotated[int, typer.Option(min=1, help="Withhold counts below this, and those that reveal them; 1 withholds none.")] = 10,
) -> None:
    """Count a period's measures, complaints and accuracy in the fields of the EU's transparency reports (Articles 15, 24, 42).

    Writes the tables of the template that follow from the traffic as CSV, the same numbers as JSON, and one page.
    """
    from vigil_data.progress import Progress
    from vigil_monitoring.transparency import Identification, read_appeals, read_human_measures, write_report
    from vigil_monitoring.transparency.accuracy import read_accuracy

    mapped, _ = _mapping(mapping)
    opened, period = _traffic(traffic, start, end)
    complaints = None if appeals is None else read_appeals(appeals, period.start, period.end)
    accuracy = [] if metrics is None else read_accuracy(metrics, period)
    restricting = [name for name, of in mapped.actions.items() if of.restricts]
    by_people = (
        []
        if human_measures is None
        else read_human_measures(human_measures, period.start, period.end, [*mapped.labels], restricting)
    )
    with Progress("reading decisions", unit="decisions") as progress:
        report, files = write_report(
            opened, mapped, Identification(service, provider, period), to, k, by_people, complaints, accuracy, progress
        )
    _show(report, period)
    for file in files:
        typer.echo(str(file))


def statements(  # noqa: PLR0917 (the options of the command)
    traffic: TrafficPath,
    to: Annotated[
        Path, typer.Option(metavar="FILE.jsonl", help="The statements, one JSON object each; next to it, NAME.index.csv.")
    ],
    mapping: Mapped,
    start: From = None,
    end: Until = None,
    human_measures: People = None,
) -> None:
    """Write a statement of reasons for each measure, in the fields of the EU's transparency database (Articles 17 and 24(5)).

    States label, probability, threshold, policy and policy text, and nothing of the content. NAME.index.csv has the id of each
    statement's item; keep it to yourself.
    """
    from vigil_data.errors import UserError
    from vigil_data.progress import Progress
    from vigil_monitoring.transparency import measures, read_human_measures, write_statements

    if to.suffix != ".jsonl":
        raise UserError(f"{to}: statements are JSON Lines; name a file that ends in .jsonl")
    mapped, texts = _mapping(mapping)
    opened, period = _traffic(traffic, start, end)
    restricting = [name for name, of in mapped.actions.items() if of.restricts]
    by_people = (
        []
        if human_measures is None
        else read_human_measures(human_measures, period.start, period.end, [*mapped.labels], restricting)
    )
    with Progress("reading decisions", unit="decisions") as progress:
        number, categories = write_statements(measures(opened, mapped, by_people, progress), mapped, texts, to)
    for category, count in categories.most_common():
        typer.echo(f"{count:>10,}  {category}")
    typer.echo(f"{number:>10,}  statements of reasons: {to}; their ids: {to.with_suffix('.index.csv')}")


def _mapping(name: str) -> "tuple[TransparencyMapping, Mapping[str, Label]]":
    """Return a shipped mapping by name, or the user's own, with the policy text of its taxonomy."""
    from vigil.workflows.shipped_recipes import RECIPES, taxonomy_file
    from vigil_data.importers.collection import load_taxonomy
    from vigil_data.yaml_files.shipped_files import named_file, shipped_names
    from vigil_monitoring.transparency import read_mapping

    folder = RECIPES / "transparency"
    file = named_file(name, folder, f"mapping ({', '.join(shipped_names(folder))})", "vigil monitor transparency --help")
    mapped = read_mapping(file)
    if mapped.taxonomy is None:
        return mapped, {}
    taxonomy = load_taxonomy(taxonomy_file(mapped.taxonomy, file.parent))
    return mapped, {label: of for head in taxonomy.heads.values() for label, of in head.labels.items()}


def _traffic(path: Path, start: datetime | None, end: datetime | None) -> "tuple[Traffic, Period]":
    """Return the live traffic of a period, and the period."""
    from vigil_monitoring.results import Period
    from vigil_monitoring.traffic import open_traffic

    opened = open_traffic(path, start.date() if start else None, end.date() if end else None)
    return opened, Period(start.date() if start else opened.days[0], end.date() if end else opened.days[-1])


def _show(report: "TransparencyReport", period: "Period") -> None:
    from rich.console import Console
    from rich.table import Table

    def shown(count: int | None) -> str:
        return "withheld" if count is None else f"{count:,}"

    table = Table("label", "measures", *report.actions, title=f"Measures, {period}", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for label, of in zip(report.by_label, report.label_actions, strict=True):
        table.add_row(label.name, shown(label.count), *map(shown, of.counts))
    table.add_section()
    table.add_row("all", shown(report.measures), *(shown(row.count) for row in report.by_action))
    Console().print(table)
    typer.echo(
        f"{report.decisions:,} decisions; measures taken solely by automated means: {shown(report.automated)}, by people: "
        f"{shown(report.human)}"
    )
    if report.appeals is not None:
        every = report.appeals.rows[0]
        typer.echo(f"complaints: {shown(every.submitted)}, upheld {shown(every.upheld)}, reversed {shown(every.reversed)}")
    if report.withheld:
        typer.echo(f"withheld: {report.withheld} counts, those below {report.k} and those that reveal them")
