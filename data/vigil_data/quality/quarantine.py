"""The quarantine table: what an import or a check refused, why, and where it came from; no text and no media.

Example:
    >>> table = read(Path("datasets/posts"))
    >>> table.filter(matching(table, modality="image"))["reason"].to_pylist()
    ['the PNG file is truncated']
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.compute as pc

from vigil_data.dataset.table_schema import QUARANTINE, storable
from vigil_data.dataset.writer_lock import writing
from vigil_data.loading.location import has_version, location
from vigil_data.loading.packing import Refusal
from vigil_data.quality.origin import ROW, Place, Places, Refused

LISTED = "matches the list "
"""Start of the reasons of items that are on a list of known hashes."""


def read(folder: Path) -> pa.Table:
    """Return a dataset's quarantined items, oldest first; see :data:`vigil_data.dataset.table_schema.QUARANTINE`."""
    table = folder / "quarantine.lance"
    return lance.dataset(location(table)).to_table() if has_version(table) else QUARANTINE.empty_table()


def put(
    folder: Path, refused: Sequence[Refusal], *, places: Places | None = None, command: str = "", version: int = 0
) -> datetime:
    """Add refused items in one commit; an item that is refused again has one row, with the new reason.

    Args:
        folder: the dataset's folder.
        refused: the items.
        places: finds the places of those that do not know it.
        command: the command that refused them.
        version: newest version of the dataset at that time; 0 if there was none.

    Returns:
        The time that their rows have, for :func:`release`.
    """
    now = datetime.now(UTC)
    unplaced = {r.id for r in refused if r.id and not (isinstance(r, Refused) and r.place)}
    found = places(unplaced) if places is not None and unplaced else {}
    rows = [_row(refusal, found.get(refusal.id)) for refusal in refused]
    for row in rows:
        row |= {"quarantined_at": now, "command": storable(command), "version": version}
    if not rows:
        return now
    with writing(folder):
        old = read(folder)
        places_again = {(row["file"], row["row"]) for row in rows if row.get("row") is not None}
        ids_again = {row["id"] for row in rows if row["modality"] != ROW}
        rows_again = {row["id"] for row in rows if row["modality"] == ROW} - {""}
        kept_N = [
            (row["file"], row["row"]) not in places_again
            and row["id"] not in (ids_again if row["modality"] == ROW else ids_again | rows_again)
            for row in old.select(["id", "modality", "file", "row"]).to_pylist()
        ]
        _replace(folder, pa.concat_tables([old.filter(pa.array(kept_N, pa.bool_())), pa.Table.from_pylist(rows, QUARANTINE)]))
    return now


def release(folder: Path, ids: Iterable[pa.Array], before: datetime) -> int:
    """Remove the rows of ids that are stored now, except those put there since ``before``; return their number."""
    with writing(folder):
        rows = read(folder)
        if not rows.num_rows:
            return 0
        refused = rows["id"].combine_chunks()
        stored = pa.chunked_array([part.filter(pc.is_in(part, refused)) for part in ids], pa.string())
        older = pc.less(rows["quarantined_at"], pa.scalar(before, QUARANTINE.field("quarantined_at").type))
        return remove(folder, rows, pc.and_(pc.is_in(rows["id"], stored), older))


def remove(folder: Path, table: pa.Table, mask_N: pa.ChunkedArray) -> int:
    """Remove rows, and return their number.

    Args:
        folder: the dataset's folder.
        table: from :func:`read`, whose rows are removed if they still exist.
        mask_N: which of them.
    """
    removed = set(_keys(table.filter(mask_N)))
    with writing(folder):
        rows = read(folder)
        gone_N = [key in removed for key in _keys(rows)] if removed else []
        if any(gone_N):
            _replace(folder, rows.filter(pa.array([not gone for gone in gone_N], pa.bool_())))
        return sum(gone_N)


def matching(
    table: pa.Table, *, ids: Collection[str] = (), modality: str | None = None, reason: str | None = None
) -> pa.ChunkedArray:
    """Return a mask of the rows that meet all given conditions.

    Args:
        table: from :func:`read`.
        ids: any of these ids (default: all).
        modality: ``text``, ``image``, ``audio`` or ``row``.
        reason: a part of the reason, in any case.
    """
    mask = pa.chunked_array([pa.array([True] * table.num_rows, pa.bool_())])
    if ids:
        mask = pc.and_(mask, pc.is_in(table["id"], pa.array(list(ids), pa.string())))
    if modality is not None:
        mask = pc.and_(mask, pc.equal(table["modality"], modality))
    if reason is not None:
        mask = pc.and_(mask, pc.match_substring(table["reason"], reason, ignore_case=True))
    return mask


def _row(refusal: Refusal, place: Place | None) -> dict[str, Any]:
    row: dict[str, Any] = {"id": storable(refusal.id), "modality": refusal.modality, "index": refusal.index}
    row["reason"] = storable(refusal.reason)
    if isinstance(refusal, Refused):
        row |= {"author": refusal.author and storable(refusal.author), "created_at": refusal.created_at}
        place = refusal.place or place
    if place is not None:
        row |= {"file": storable(place.file), "row": place.row, "origin": place.origin.to_json()}
    return row


def _keys(table: pa.Table) -> list[tuple[Any, ...]]:
    names = ["id", "modality", "file", "row", "quarantined_at"]
    return [tuple(row[name] for name in names) for row in table.select(names).to_pylist()]


def _replace(folder: Path, rows: pa.Table) -> None:
    mode = "overwrite" if has_version(folder / "quarantine.lance") else "create"
    lance.write_dataset(rows, str(folder / "quarantine.lance"), schema=QUARANTINE, mode=mode)
