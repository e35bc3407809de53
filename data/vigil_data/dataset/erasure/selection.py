"""Which items an erasure removes: found in every version of the dataset and in the quarantine."""

from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import lance
import pyarrow as pa
import pyarrow.compute as pc

from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.erasure.ledger import Ledger
from vigil_data.dataset.table_schema import sql_literal
from vigil_data.filesystem import StrPath
from vigil_data.loading.location import has_version

ITEMS, QUARANTINE = "items.lance", "quarantine.lance"


@dataclass(frozen=True, slots=True)
class Selection:
    """What is to be erased: items by id, or all that meet a condition. Give one of them.

    A condition is checked on the newest version of an item. Items without ``created_at`` are not older than any time.

    Attributes:
        ids: ids of items.
        author: value of the column ``author``.
        before: items with an earlier ``created_at``.
        where: SQL condition over the columns.
    """

    ids: frozenset[str] = frozenset()
    author: str | None = None
    before: datetime | None = None
    where: str | None = None

    @property
    def condition(self) -> str | None:
        """The condition in SQL; ``None`` for ids."""
        if self.author is not None:
            return f"author = {sql_literal(self.author)}"
        if self.before is not None:
            return f"created_at < timestamp '{self.before.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}+00:00'"
        return self.where

    @property
    def quarantine_condition(self) -> str | None:
        """The part of the condition that the columns of the quarantine answer."""
        return None if self.where is not None else self.condition


@dataclass(frozen=True, slots=True)
class Found:
    """An item to erase.

    Attributes:
        id: its id.
        first: first version of the dataset that has it; 0 if it is only in quarantine.
        last: last version that has it.
        split: its split in that version; empty if it has none.
        contents: digests of all its content, in each version.
        quarantined: whether it is in quarantine.
        is_copy: whether it was not selected, and has the content of an item that was.
    """

    id: str
    first: int = 0
    last: int = 0
    split: str = ""
    contents: tuple[int, ...] = ()
    quarantined: bool = False
    is_copy: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What an erasure will remove.

    Attributes:
        path: the dataset's folder.
        version: the dataset's newest version.
        versions: all of its versions.
        items: the items, by id.
        absent: ids that are not in the dataset.
        erased_before: ids that are not in the dataset, and were erased from it, to the date.
        held: number of items that a legal hold keeps.
        undated: number of items without ``created_at``, to which no age applies; 0 if the selection is not by age.
        tags: tag of the dataset to its version.
        quarantine_condition: SQL condition by which rows of the quarantine without an id are removed.
    """

    path: Path
    version: int
    versions: tuple[int, ...]
    items: tuple[Found, ...]
    absent: tuple[str, ...] = ()
    erased_before: Mapping[str, str] = field(default_factory=dict)
    held: int = 0
    undated: int = 0
    tags: Mapping[str, int] = field(default_factory=dict)
    quarantine_condition: str | None = None

    @property
    def splits(self) -> dict[str, int]:
        """Split to number of items; items that are only in quarantine are not counted."""
        splits = [item.split for item in self.items if item.first]
        return {split: splits.count(split) for split in sorted(set(splits))}

    @property
    def quarantined(self) -> int:
        """Number of the items that are in quarantine."""
        return sum(item.quarantined for item in self.items)

    @property
    def copies(self) -> int:
        """Number of the items that are copies of selected ones."""
        return sum(item.is_copy for item in self.items)


def plan_erasure(path: StrPath, selection: Selection, *, copies: bool = False, held: Collection[str] = ()) -> Plan:
    """Find the items of a selection.

    Args:
        path: the dataset's folder.
        selection: what to find.
        copies: find other items with the same content, too.
        held: ids of items that are kept, by a legal hold.

    Raises:
        UserError: if there is no dataset, or the condition is invalid.
    """
    dataset = Dataset(path)
    stored = list(fragment_states(dataset.path / ITEMS))
    refused = list(fragment_states(dataset.path / QUARANTINE))
    ids = set(selection.ids)
    undated = 0
    if (condition := selection.condition) is not None:
        dataset.rows(where=condition)  # raises the error of an invalid condition
        ids = _matching(stored, condition)
        # An item is judged by its newest version: an older one may have met a condition that it no longer meets.
        newest = _matching([state for state in stored if state.version == dataset.version], condition)
        ids -= _present(stored, ids - newest, dataset.version)
        if selection.quarantine_condition is not None:
            ids |= _matching(refused, selection.quarantine_condition) - {""}
        undated = len(dataset.rows(where="created_at IS NULL")) if selection.before is not None else 0
    kept = ids & set(held)
    ids -= kept
    found = _details(stored, refused, ids)
    if copies:
        contents = {content for item in found.values() for content in item.contents}
        more = _with_contents(stored, contents) - ids
        kept |= more & set(held)
        copied = _details(stored, refused, more - kept)
        found |= {id_: Found(i.id, i.first, i.last, i.split, i.contents, i.quarantined, True) for id_, i in copied.items()}
    ledger = Ledger(dataset.path)
    absent = sorted(ids - found.keys())
    before = {id_: when for id_ in absent if (when := ledger.erased_on(id_)) is not None}
    table = lance.dataset(str(dataset.path / ITEMS))
    return Plan(
        path=dataset.path,
        version=dataset.version,
        versions=tuple(v["version"] for v in table.versions()),
        items=tuple(found[id_] for id_ in sorted(found)),
        absent=tuple(id_ for id_ in absent if id_ not in before),
        erased_before=before,
        held=len(kept),
        undated=undated,
        tags={name: int(tag["version"]) for name, tag in table.tags.list().items()},
        quarantine_condition=selection.quarantine_condition,
    )


class FragmentState(NamedTuple):
    """The rows of a fragment as a version has them, and all versions that have the same rows.

    Attributes:
        fragment: the fragment in the newest of these versions.
        version: the newest of these versions.
        versions: all of them, newest first.
    """

    fragment: lance.LanceFragment
    version: int
    versions: list[int]


def fragment_states(table: Path) -> Iterator[FragmentState]:
    """Yield each state of each fragment of a Lance table once, those of the newest version first.

    Two versions share a state if the fragment has the same deletions and the same files for ids and digests.
    """
    if not has_version(table):
        return
    states: dict[tuple[Any, ...], FragmentState] = {}
    newest = lance.dataset(str(table))
    for version in sorted((v["version"] for v in newest.versions()), reverse=True):
        dataset = newest if version == newest.version else lance.dataset(str(table), version=version)
        numbers = {n for field in dataset.lance_schema.fields() if field.name() in ("id", "digests") for n in _numbers(field)}
        for fragment in dataset.get_fragments():
            metadata = fragment.metadata
            deletions = metadata.deletion_file
            files = tuple(file.path for file in metadata.files if numbers.intersection(file.fields))
            key = (metadata.id, files, None if deletions is None else (deletions.read_version, deletions.id))
            states.setdefault(key, FragmentState(fragment, version, [])).versions.append(version)
    yield from states.values()


def _numbers(field: Any) -> Iterator[int]:
    """Yield the numbers of a field and of those within it, as the metadata of files have them."""
    yield field.id()
    for child in field.children():
        yield from _numbers(child)


def _matching(states: list[FragmentState], condition: str) -> set[str]:
    """Return the ids of rows that meet a condition; a state that lacks one of its columns has none."""
    found: set[str] = set()
    for state in states:
        try:
            batches = state.fragment.scanner(columns=["id"], filter=condition).to_batches()
            found.update(id_ for batch in batches for id_ in batch["id"].to_pylist() if id_ is not None)
        except (ValueError, OSError):
            continue
    return found


def _rows(states: list[FragmentState], ids: Set[str], columns: list[str]) -> Iterator[tuple[FragmentState, pa.RecordBatch]]:
    wanted = pa.array(sorted(ids), pa.string())
    for state in states if ids else ():
        names = [name for name in columns if name in state.fragment.schema.names]
        for batch in state.fragment.scanner(columns=names).to_batches():
            rows = batch.filter(pc.is_in(batch["id"], wanted))
            if rows.num_rows:
                yield state, rows


def _present(states: list[FragmentState], ids: Set[str], version: int) -> set[str]:
    """Return those of some ids that are in a version."""
    current = [state for state in states if version in state.versions]
    return {id_ for _, rows in _rows(current, ids, ["id"]) for id_ in rows["id"].to_pylist()}


def _details(stored: list[FragmentState], refused: list[FragmentState], ids: Set[str]) -> dict[str, Found]:
    """Return the items of some ids that are anywhere in the dataset."""
    quarantined = {id_ for _, rows in _rows(refused, ids, ["id"]) for id_ in rows["id"].to_pylist()}
    first: dict[str, int] = {}
    last: dict[str, tuple[int, str]] = {}
    contents: dict[str, set[int]] = {}
    for state, rows in _rows(stored, ids, ["id", "split", "digests"]):
        for row in rows.to_pylist():
            first[row["id"]] = min(first.get(row["id"], state.version), *state.versions)
            last[row["id"]] = max(last.get(row["id"], (0, "")), (state.version, row["split"] or ""))
            contents.setdefault(row["id"], set()).update((row["digests"] or ())[:1])
    return {
        id_: Found(id_, first.get(id_, 0), *last.get(id_, (0, "")), tuple(sorted(contents.get(id_, ()))), id_ in quarantined)
        for id_ in first.keys() | quarantined
    }


def _with_contents(states: list[FragmentState], contents: Set[int]) -> set[str]:
    """Return the ids of rows whose digest of all content is one of ``contents``."""
    found: set[str] = set()
    wanted = pa.array(sorted(contents), pa.uint64())
    for state in states if contents else ():
        for batch in state.fragment.scanner(columns=["id", "digests"]).to_batches():
            rows = batch.filter(pc.greater(pc.list_value_length(batch["digests"]), 0))
            found.update(rows["id"].filter(pc.is_in(pc.list_element(rows["digests"], 0), wanted)).to_pylist())
    return found
