"""Retry of quarantined items: their sources are read again, and what is good now is stored.

Example:
    >>> retry(Path("datasets/posts"), read(Path("datasets/posts")))
    Retried(stored=3, version=7, refused=1, absent=[], unreadable=[], leaks=...)
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vigil_data.dataset.dataset import Dataset, write
from vigil_data.dataset.history import Change
from vigil_data.dataset.leaks import Leaks
from vigil_data.dataset.text_content import NO_CONTENT, is_blank
from vigil_data.errors import UserError
from vigil_data.importers.bounded_lines import Limits
from vigil_data.importers.collection import open_source
from vigil_data.importers.manifest import DerivedTexts, Manifest
from vigil_data.importers.source_reader import SourceReader
from vigil_data.items import Item
from vigil_data.loading.packing import Refusal
from vigil_data.quality import quarantine
from vigil_data.quality.checks.media_pool import MediaLimits, MediaPool, media_of
from vigil_data.quality.origin import ROW, Origin, Place, Refused


@dataclass(frozen=True, slots=True, eq=False)
class Retried:
    """Result of :func:`retry`.

    Attributes:
        stored: number of items that are stored now.
        version: the dataset's version.
        refused: number of items that were read again and refused again, with their new reasons.
        absent: ids or places that the sources no longer have; they stay in quarantine.
        unreadable: one line for each source that cannot be read; its items stay in quarantine.
        leaks: content of the stored items that is in more than one split.
    """

    stored: int
    version: int
    refused: int
    absent: list[str]
    unreadable: list[str]
    leaks: Leaks


class _Wanted:
    """Quarantined rows of one origin. A row that was wrong itself is found at its place, other items by their id."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self._ids = {row["id"] for row in rows if row["modality"] != ROW}
        self._places = {(row["file"], row["row"]) for row in rows if row["modality"] == ROW}
        self.found: set[Any] = set()

    def __call__(self, id_: str, place: Place) -> bool:
        at = (place.file, place.row)
        self.found |= {key for key, wanted in ((id_, id_ in self._ids), (at, at in self._places)) if wanted}
        return id_ in self._ids or at in self._places

    def has(self, row: Mapping[str, Any]) -> bool:
        """Whether a quarantined row was found."""
        return ((row["file"], row["row"]) if row["modality"] == ROW else row["id"]) in self.found


_Read = Callable[[Origin, _Wanted], Iterator[tuple[Item | Refusal, Place]]]


def retry(
    folder: Path, table: pa.Table, *, limits: MediaLimits | None = None, progress: Callable[[int], None] | None = None
) -> Retried:
    """Read the sources of quarantined items again and store what is good now, as one version.

    A row that was wrong itself is read at its line, so it must be corrected in place; other items are found by their id. Items on
    a list of known hashes are not retried.

    Args:
        folder: the dataset's folder.
        table: rows of the quarantine table.
        limits: limits of the media of items that a check took out of the dataset.
        progress: called with the number of items read so far.

    Raises:
        UserError: if there is no dataset, or the good items do not fit it; nothing is written then.
    """
    # An import that was killed after it stored an item has left that item in quarantine.
    dataset = Dataset(folder)
    stored = dataset.table(["id"])["id"]
    stored_N = pc.and_(pc.is_in(table["id"], stored), pc.not_equal(table["modality"], ROW))
    quarantine.remove(folder, table, stored_N)
    table = table.filter(pc.invert(stored_N))
    listed_N = pc.starts_with(table["reason"], quarantine.LISTED)
    table = table.filter(pc.invert(listed_N))
    by_origin: dict[str, list[dict[str, Any]]] = {}
    unreadable: list[str] = []
    if listed := pc.sum(listed_N).as_py():
        unreadable.append(f"{listed:,} items are on a list of known hashes; to store one, import it without --match")
    rows = table.to_pylist()
    for row in rows:
        by_origin.setdefault(row["origin"] or "", []).append(row)
    if unknown := by_origin.pop("", []):
        unreadable.append(f"{len(unknown)} items: not imported from a file by a command; import them again, or drop them")
    groups = [(Origin.from_json(origin), _Wanted(rows)) for origin, rows in by_origin.items()]
    places: dict[str, Place] = {}
    written = write(
        folder,
        _read_again(groups, places, unreadable, partial(_items, stored=dataset, limits=limits)),
        append=True,
        bad_rows="quarantine",
        places=lambda ids: {id_: places[id_] for id_ in ids if id_ in places},
        change=Change("retry quarantine"),
        progress=progress,
    )
    # What was refused again has a new row.
    found = {id(row) for _, wanted in groups for row in wanted.rows if wanted.has(row)}
    quarantine.remove(folder, table, pa.chunked_array([pa.array([id(row) in found for row in rows], pa.bool_())]))
    absent = [_name(row) for _, wanted in groups for row in wanted.rows if not wanted.has(row)]
    return Retried(written.kept, written.version, written.quarantined, absent, unreadable, written.leaks)


def _read_again(
    groups: list[tuple[Origin, _Wanted]], places: dict[str, Place], unreadable: list[str], read: _Read
) -> Iterator[Item | Refusal]:
    for origin, wanted in groups:
        try:
            for item, place in read(origin, wanted):
                places[item.id] = place
                yield item
        except UserError as error:
            unreadable += error.lines


def _items(
    origin: Origin, wanted: _Wanted, stored: Dataset, limits: MediaLimits | None
) -> Iterator[tuple[Item | Refusal, Place]]:
    if origin.importer == "dataset":
        yield from _stored_items(origin, wanted, limits)
        return
    at = Place(origin, origin.path)

    def only(id_: str, place: Place) -> bool:
        nonlocal at
        at = place
        return wanted(id_, place)

    reader = _manifest(origin, stored) if origin.importer == "manifest" else _source(origin)
    for item in reader.items(only):
        yield item, at


def _stored_items(origin: Origin, wanted: _Wanted, limits: MediaLimits | None) -> Iterator[tuple[Item | Refusal, Place]]:
    """Yield the items that a check took out of a version of a dataset, their media decoded completely again."""
    dataset = Dataset(origin.path, origin.options["version"])
    with MediaPool(limits, workers=1) as pool:
        for row in wanted.rows:
            place = Place(origin, origin.path, row["row"])
            (item,) = dataset.take([row["row"]])
            wanted(item.id, place)
            media = [((modality, index), modality, data) for modality, index, data in media_of(item)]
            bad = [(medium, verdict.reason) for medium, verdict in pool.verify(media) if verdict.kind]
            if not media and all(map(is_blank, item.text)):
                bad = [(("text", 0), NO_CONTENT)]
            yield Refused.of(item, *bad[0][0], bad[0][1], place) if bad else item, place


def _source(origin: Origin) -> SourceReader:
    options = dict(origin.options)
    taxonomy = options.pop("taxonomy", None)
    return open_source(origin.importer, Path(origin.path), taxonomy=None if taxonomy is None else Path(taxonomy), **options)


def _manifest(origin: Origin, stored: Dataset) -> Manifest:
    options = dict(origin.options)
    media_root = options.pop("media_root")
    manifest = Manifest(
        Path(origin.path),
        media_root=None if media_root is None else Path(media_root),
        limits=Limits(**options.pop("limits")),
        derived=DerivedTexts(**options.pop("derived")),
        stored=stored,
        bad_rows="quarantine",
        **options,
    )
    manifest.check(needs_good=False)
    return manifest


def _name(row: Mapping[str, Any]) -> str:
    place = row["file"] if row["row"] is None else f"{row['file']}:{row['row']}"
    return f"{row['id']} ({place})" if row["id"] else str(place)
