"""`vigil data quarantine`: what imports and checks refused, and what becomes of it."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vigil.cli.data.tables import print_table
from vigil_data.errors import UserError, one_line
from vigil_data.progress import Progress

DatasetFolder = Annotated[Path, typer.Argument(metavar="DATASET", help="The dataset's folder.")]
Ids = Annotated[list[str] | None, typer.Option("--id", metavar="ID", help="Only this item; may be repeated.")]
OfModality = Annotated[
    str | None,
    typer.Option("--modality", metavar="NAME", help="Only text, image, audio, or row: rows that are wrong themselves."),
]
OfReason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Only reasons that contain TEXT, in any case.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

MAX_PRINTED = 50
"""Rows of a table on the terminal; JSON has them all."""


def register(group: typer.Typer) -> None:
    """Add the commands to ``group``."""
    refused = typer.Typer(help="List, retry and drop quarantined items.", no_args_is_help=True)
    refused.command("list")(list_quarantine)
    refused.command("retry")(retry)
    refused.command("drop")(drop)
    group.add_typer(refused, name="quarantine")


def list_quarantine(
    dataset: DatasetFolder,
    *,
    ids: Ids = None,
    modality: OfModality = None,
    reason: OfReason = None,
    as_json: AsJson = False,
) -> None:
    """List the quarantined items: id, medium, reason, where they came from, and when."""
    table = _selected(dataset, ids, modality, reason)
    if as_json:
        typer.echo(json.dumps(table.to_pylist(), default=lambda moment: moment.isoformat(), indent=2))
        return
    if not table.num_rows:
        typer.echo(f"{dataset}: nothing is in quarantine" + (" that meets these conditions" if ids or modality or reason else ""))
        return
    print_table(["id", "medium", "reason", "source", "quarantined"], map(_cells, table.slice(0, MAX_PRINTED).to_pylist()))
    if table.num_rows > MAX_PRINTED:
        typer.echo(f"… and {table.num_rows - MAX_PRINTED:,} more; --json prints them all")


def retry(dataset: DatasetFolder, *, ids: Ids = None, modality: OfModality = None, reason: OfReason = None) -> None:
    """Read the sources of quarantined items again, and store what is good now as one version.

    A row that was wrong itself is read at its line: correct it in place. Other items are found by their id. What is refused again
    has its new reason; what its source no longer has stays in quarantine.
    """
    from vigil_data.dataset.leaks import leak_lines
    from vigil_data.quality.retry import retry as read_again

    table = _selected(dataset, ids, modality, reason)
    if not table.num_rows:
        raise UserError(f"{dataset}: no quarantined item to retry; see `vigil data quarantine list {dataset}`")
    with Progress("reading again") as progress:
        result = read_again(dataset, table, progress=lambda done: progress("reading again", done, table.num_rows))
    typer.echo(
        f"{dataset} version {result.version}: {result.stored:,} of {table.num_rows:,} stored, {result.refused:,} refused again, "
        f"{len(result.absent):,} no longer in their source"
    )
    warnings = [f"{line}; nothing of it was retried" for line in result.unreadable]
    warnings += [f"no longer in its source: {name}" for name in result.absent[:20]]
    warnings += leak_lines(result.leaks)
    for line in warnings:
        typer.echo(f"warning: {one_line(line)}", err=True)


def drop(
    dataset: DatasetFolder,
    *,
    ids: Ids = None,
    modality: OfModality = None,
    reason: OfReason = None,
    everything: Annotated[bool, typer.Option("--all", help="Drop all quarantined items.")] = False,
) -> None:
    """Remove items from the quarantine; the dataset's items are not changed.

    Their rows can still be read in old versions of the quarantine table; `vigil data erase` removes those, too.
    """
    from vigil_data.quality import quarantine

    if not everything and not (ids or modality or reason):
        raise UserError("name what to drop: --id, --modality or --reason, or --all")
    opened = _opened(dataset)
    mask = quarantine.matching(opened, ids=ids or (), modality=modality, reason=reason)
    removed = quarantine.remove(dataset, opened, mask)
    typer.echo(f"{dataset}: {removed:,} removed from quarantine, {opened.num_rows - removed:,} left")


def _opened(dataset: Path) -> Any:
    from vigil_data.dataset.dataset import Dataset

    return Dataset(dataset).quarantine()


def _selected(dataset: Path, ids: list[str] | None, modality: str | None, reason: str | None) -> Any:
    from vigil_data.quality import quarantine

    if modality is not None and modality not in ("text", "image", "audio", "row"):
        raise UserError(f"--modality {modality}: must be text, image, audio or row")
    table = _opened(dataset)
    return table.filter(quarantine.matching(table, ids=ids or (), modality=modality, reason=reason))


def _cells(row: dict[str, Any]) -> list[Any]:
    medium = row["modality"] if row["modality"] == "row" else f"{row['modality']} {row['index']}"
    source = Path(row["file"] or "").name + ("" if row["row"] is None else f":{row['row']}")  # JSON has the whole path
    return [row["id"], medium, row["reason"], source, f"{row['quarantined_at']:%Y-%m-%d %H:%M}"]
