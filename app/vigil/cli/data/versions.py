"""`vigil data log`, `diff` and `provenance`: what changed in a dataset, when and why, and who gave a target."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vigil.cli.data.tables import print_table
from vigil_data.errors import one_line
from vigil_data.progress import Progress

if TYPE_CHECKING:
    from vigil_data.dataset.difference import Cells

DatasetFolder = Annotated[Path, typer.Argument(metavar="DATASET", help="The dataset's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(group: typer.Typer) -> None:
    """Add the commands to ``group``."""
    group.command("log")(log)
    group.command("diff")(diff)
    group.command("provenance")(provenance)


def log(dataset: DatasetFolder, *, as_json: Json = False) -> None:
    """Show who changed a dataset, when, why and by which command: one line for each version, newest first.

    Versions that an erasure has deleted are marked with an asterisk; only their changes are kept.
    """
    from vigil_data.dataset import history

    entries = history.read(dataset)[::-1]
    if as_json:
        typer.echo(json.dumps([entry.to_json() for entry in entries], indent=2, ensure_ascii=False))
        return
    rows = []
    for entry in entries:
        change = entry.change
        counts = ", ".join(f"{count:,} {name}" for name, count in change.counts.items()) if change else ""
        told = (
            [change.operation, change.who, counts, change.reason, change.command] if change else ["(another program)"] + [""] * 4
        )
        number = f"{entry.version}{'' if entry.readable else '*'}"
        rows.append([number, f"{entry.when:%Y-%m-%d %H:%M:%S}", f"{entry.rows:,}", *told])
    print_table(["version", "written (UTC)", "items", "operation", "who", "changed", "reason", "command"], rows)


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
    from dataclasses import asdict

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
    from dataclasses import asdict

    from vigil_data.dataset.provenance import provenance_of

    found = provenance_of(dataset, id_)
    if as_json:
        values = [{**asdict(of), "at": of.at and of.at.isoformat()} for of in found]
        typer.echo(json.dumps(values, indent=2, ensure_ascii=False))
        return
    rows: list[Sequence[Any]] = [
        [of.label, f"{of.value:g}", of.source, f"{of.at:%Y-%m-%d %H:%M:%S}" if of.at else "", of.policy or ""] for of in found
    ]
    print_table(["label", "target", "source", "given (UTC)", "policy"], rows)
