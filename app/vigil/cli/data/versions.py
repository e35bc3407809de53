"""`vigil data log`, `diff`, `provenance`, `merge-labels` and `join`: what changed in a dataset, and who gave its targets."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vigil.cli.data.show import show_contents
from vigil.cli.data.tables import print_table
from vigil_data.errors import one_line
from vigil_data.filesystem import write_file
from vigil_data.progress import Progress

if TYPE_CHECKING:
    from vigil_data.dataset.difference import Cells
    from vigil_data.reviews.merge import Cell

DatasetFolder = Annotated[Path, typer.Argument(metavar="DATASET", help="The dataset's folder.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the history of the dataset.")]
Report = Annotated[Path | None, typer.Option("--report", metavar="FILE", help="Write all of them to FILE as JSON Lines.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(group: typer.Typer) -> None:
    """Add the commands to ``group``."""
    group.command("log")(log)
    group.command("diff")(diff)
    group.command("provenance")(provenance)
    group.command("merge-labels")(merge_labels)
    group.command("join")(join)


def log(dataset: DatasetFolder, *, as_json: Json = False) -> None:
    """Show who changed a dataset, when, why and by which command, newest version first."""
    from vigil_data.dataset import history

    entries = history.read(dataset)[::-1]
    if as_json:
        typer.echo(json.dumps([entry.to_json() for entry in entries], indent=2, ensure_ascii=False))
        return
    for entry in entries:
        change = entry.change
        deleted = "" if entry.readable else " (deleted by an erasure; only its change is kept)"
        who = f" by {change.who}" if change else ""
        typer.echo(one_line(f"version {entry.version}, {entry.when:%Y-%m-%d %H:%M:%S} UTC{who}{deleted}"))
        if change is None:
            typer.echo(f"    made by another program; {entry.rows:,} items")
            continue
        counts = "".join(f"{count:,} {name}, " for name, count in change.counts.items())
        typer.echo(one_line(f"    {change.operation}: {counts}{entry.rows:,} items in all"))
        if change.reason:
            typer.echo(one_line(f"    reason: {change.reason}"))
        typer.echo(one_line(f"    $ {change.command}"))


def diff(
    dataset: DatasetFolder,
    old: Annotated[int, typer.Argument(metavar="V1", help="The older version.")],
    new: Annotated[int | None, typer.Argument(metavar="[V2]", help="The newer version (default: the newest).")] = None,
    *,
    ids: Annotated[bool, typer.Option("--ids", help="Print the ids of the rows, too.")] = False,
    as_json: Json = False,
) -> None:
    """Show what differs between two versions: rows, cells of each label and column, and columns.

    A label's cell is set if it was unknown, unset if it is unknown now, and changed if its value differs. Images and audio are
    compared by the digests of the items' content.
    """
    from vigil_data.dataset.difference import compare

    with Progress("comparing", unit="columns") as progress:
        found = compare(dataset, old, new, progress=progress)
    rows = {"added": found.added, "removed": found.removed, "changed": found.changed}
    if as_json:
        value = asdict(found) if ids else {**asdict(found), **{name: len(of) for name, of in rows.items()}}
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{dataset}: version {found.old} to {found.new}")
    typer.echo(", ".join(f"{len(of):,} rows {name}" for name, of in rows.items()))
    for title, names in (("columns added", found.columns_added), ("columns removed", found.columns_removed)):
        if names:
            typer.echo(f"{title}: {one_line(', '.join(names))}")
    _print_cells("label", found.labels)
    _print_cells("column", found.columns)
    for name, of in rows.items() if ids else ():
        for id_ in of:
            typer.echo(f"{name} {one_line(id_)}")


def _print_cells(title: str, cells: "dict[str, Cells]") -> None:
    if cells:
        print_table([title, "set", "changed", "unset"], ([name, of.set, of.changed, of.unset] for name, of in cells.items()))


def provenance(
    dataset: DatasetFolder,
    id_: Annotated[str, typer.Argument(metavar="ID", help="Id of the item.")],
    *,
    as_json: Json = False,
) -> None:
    """Show who or what gave each known target of an item, when, and under which policy version."""
    from vigil_data.dataset.provenance import provenance_of

    with Progress("searching"):
        found = provenance_of(dataset, id_)
    if as_json:
        values = [{**asdict(of), "at": of.at and of.at.isoformat()} for of in found]
        typer.echo(json.dumps(values, indent=2, ensure_ascii=False))
        return
    rows: list[Sequence[Any]] = [
        [of.label, f"{of.value:g}", of.source, f"{of.at:%Y-%m-%d %H:%M:%S}" if of.at else "", of.policy or ""] for of in found
    ]
    print_table(["label", "target", "source", "given (UTC)", "policy"], rows)


def merge_labels(
    dataset: DatasetFolder,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="Decisions: JSON Lines, CSV or Parquet (default: merge those that the dataset keeps again, with these rules).",
        ),
    ] = None,
    *,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="latest-policy, adjudicated, majority or confidence; several apply in their order "
            "(default: latest-policy, adjudicated, majority).",
        ),
    ] = None,
    soft: Annotated[bool, typer.Option("--soft", help="Targets are the mean of the votes (default: 0 or 1).")] = False,
    on_conflict: Annotated[
        Literal["fail", "keep", "replace"], typer.Option(help="What to do with known targets that reviewers contradict.")
    ] = "fail",
    new_label: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="A label that the dataset lacks and gets; may be repeated.")
    ] = None,
    report: Report = None,
    reason: Reason = "",
) -> None:
    """Make targets of reviewers' decisions, as one version, and keep the decisions in the dataset.

    Columns of FILE: id, label, value (0 to 1, or "cannot tell"), reviewer and time; optional policy_version, confidence (0 to 1),
    adjudicated and minutes. Every target that changes or is contradicted is listed.
    """
    from vigil_data.reviews import merge
    from vigil_data.reviews.rules import DEFAULT_RULES, check_rules

    rules = check_rules(rule) if rule else DEFAULT_RULES
    with Progress("merging decisions"):
        merged = merge.merge_labels(
            dataset, file, rules=rules, soft=soft, on_conflict=on_conflict, new_labels=new_label or (), reason=reason
        )
    changed = ", ".join(f"{count:,} {action}" for action, count in merged.counts.items()) or "none changed"
    typer.echo(f"{dataset} version {merged.version}: {merged.stored:,} decisions stored, {merged.repeated:,} were stored before")
    typer.echo(f"targets: {changed}, {merged.same:,} as before, {len(merged.undecided):,} undecided")
    if merged.absent:
        typer.echo(f"{merged.absent:,} kept decisions are about items or labels that the dataset no longer has")
    print_cells(merged.cells)
    if report is not None:
        _write_lines(report, [asdict(cell) for cell in merged.cells])


def print_cells(cells: "Sequence[Cell]", most: int = 20) -> None:
    """Print targets that reviewers decided otherwise than the dataset had them."""
    if not cells:
        return
    rows = []
    for of in cells[:most]:
        before = "unknown" if of.before is None else f"{of.before:g}"
        rows.append([of.id, of.label, before, f"{of.after:g}", of.action, ", ".join(of.reviewers), of.policy])
    print_table(["item", "label", "before", "reviewers'", "target", "reviewers", "policy"], rows)
    if len(cells) > most:
        typer.echo(f"… and {len(cells) - most:,} more; --report FILE writes all of them")


def join(
    datasets: Annotated[list[Path], typer.Argument(metavar="DATASET…", help="The datasets; their order decides which is first.")],
    to: Annotated[Path, typer.Option("--to", metavar="DATASET", help="Folder of the new dataset.")],
    *,
    same: Annotated[
        Literal["content", "id", "none"],
        typer.Option(help="Rows that become one: those with equal content, the same id, or none."),
    ] = "content",
    on_conflict: Annotated[
        Literal["fail", "first", "latest", "mean", "unknown"],
        typer.Option(help="Target of a label that rows which become one know with different values."),
    ] = "fail",
    on_id: Annotated[
        Literal["prefix", "fail"],
        typer.Option(help="What to do with an id of different rows: put the dataset's name before later ones, or fail."),
    ] = "prefix",
    report: Report = None,
    reason: Reason = "",
) -> None:
    """Join datasets into a new one: partial labels stay partial, conflicts are listed, provenance is kept.

    Rows that become one have the media of the first, the first known value of other columns, and every known target.
    """
    from vigil_data.dataset.dataset import Dataset
    from vigil_data.dataset.join import conflict_line
    from vigil_data.dataset.join import join as join_datasets
    from vigil_data.dataset.leaks import leak_lines

    with Progress("joining", unit="rows") as progress:
        joined = join_datasets(
            datasets,
            to,
            same=same,
            on_conflict=on_conflict,
            on_id=on_id,
            reason=reason,
            progress=lambda done, total: progress("joining", done, total),
        )
    typer.echo(f"{to} version {joined.version}: {joined.rows:,} items, {joined.merged:,} rows are part of an earlier one")
    print_table(
        ["dataset", "rows", "ids with its name before"],
        ([name, rows, joined.renamed.get(name, 0)] for name, rows in joined.sources.items()),
    )
    warnings = [f"{label}: {count:,} conflicting targets, resolved by {on_conflict}" for label, count in joined.conflicts.items()]
    warnings += [f"for example {conflict_line(conflict)}" for conflict in joined.listed[:5]]
    if joined.splits:
        warnings.append(
            f"{joined.splits:,} items were in several splits; each is in the first of test, validation, others, train"
        )
    for line in [*warnings, *leak_lines(joined.leaks)]:
        typer.echo(f"warning: {one_line(line)}", err=True)
    if report is not None:
        _write_lines(report, [{**of._asdict(), "claims": [claim._asdict() for claim in of.claims]} for of in joined.listed])
    show_contents(Dataset(to, joined.version))


def _write_lines(to: Path, values: "Sequence[dict[str, Any]]") -> None:
    """Write values as JSON Lines."""
    write_file(to, "".join(f"{json.dumps(value, ensure_ascii=False)}\n" for value in values))
    typer.echo(f"{len(values):,} lines in {to}")
