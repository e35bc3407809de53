"""Removal of rows from a Lance table for good: from its newest version, older versions, tags, indices and files.

Deleting rows in Lance only marks them: their bytes stay in the data files, and older versions still read them. Here the files
that hold marked rows are written again without them, indices are built again, tags on older versions are removed, and then
everything is deleted that the newest version does not use, files of killed writers included. Each step may be repeated, so that
what a crash interrupted is finished by calling :func:`purge` again.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.compute as pc

from vigil_data.dataset.history import properties_of
from vigil_data.dataset.table_schema import sql_literal
from vigil_data.errors import Failure

IDS_PER_DELETE = 5000

_INDEX_TYPES = ("BTREE", "BITMAP", "LABEL_LIST", "INVERTED", "NGRAM", "ZONEMAP", "BLOOMFILTER")
"""Types of indices that are built again; others, such as those of vectors, are dropped."""


@dataclass(frozen=True, slots=True)
class Purged:
    """What :func:`purge` did.

    Attributes:
        rows: rows removed from the newest version.
        version: the only version that is left.
        removed_versions: versions that no longer exist.
        removed_files: number of files deleted.
        removed_bytes: their size.
        moved_tags: tags of the newest version, which are on the version that is left now.
        removed_tags: tags of older versions, which no longer exist.
        dropped_indices: indices that must be built again by whoever uses them.
    """

    rows: int
    version: int
    removed_versions: tuple[int, ...]
    removed_files: int
    removed_bytes: int
    moved_tags: tuple[str, ...]
    removed_tags: tuple[str, ...]
    dropped_indices: tuple[str, ...]


def purge(
    table: Path,
    ids: Collection[str],
    properties: dict[str, str],
    *,
    condition: str | None = None,
    newest: int | None = None,
) -> Purged:
    """Remove rows of some ids, and all rows that were deleted before, from a table and all its files.

    Args:
        table: folder of the table; it has a column ``id``.
        ids: ids of the rows.
        properties: transaction properties of the version that is left.
        condition: SQL condition of other rows to remove.
        newest: the version whose tags are kept (default: the newest).

    Raises:
        Failure: if something is left.
    """
    dataset = lance.dataset(str(table))
    kept_version = dataset.version if newest is None else newest
    rows = _delete(dataset, ids, condition)
    dataset = lance.dataset(str(table))
    if any(fragment.num_deletions for fragment in dataset.get_fragments()):
        dataset.optimize.compact_files(
            materialize_deletions=True,
            materialize_deletions_threshold=0.0,
            excluded_fragment_ids=[f.fragment_id for f in dataset.get_fragments() if not f.num_deletions],
        )
    dropped = _rebuild_indices(lance.dataset(str(table)))
    dataset = lance.dataset(str(table))
    if (
        properties_of(dataset, dataset.version) != properties
    ):  # the last version of all, since the log of a deletion names what was deleted
        transaction = lance.Transaction(dataset.version, lance.LanceOperation.Append([]), transaction_properties=properties)
        dataset = lance.LanceDataset.commit(dataset, transaction)
    moved, removed = _release_tags(dataset, kept_version)
    versions = tuple(v["version"] for v in dataset.versions())
    stats = dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
    _check(table, ids)
    files = (stats.data_files_removed, stats.transaction_files_removed, stats.index_files_removed, stats.deletion_files_removed)
    return Purged(
        rows=rows,
        version=dataset.version,
        removed_versions=tuple(version for version in versions if version != dataset.version),
        removed_files=sum(files) + stats.old_versions,
        removed_bytes=stats.bytes_removed,
        moved_tags=moved,
        removed_tags=removed,
        dropped_indices=dropped,
    )


def remove_unused_files(table: Path) -> None:
    """Delete the files that no version of a table uses, such as those of a killed writer."""
    lance.dataset(str(table)).cleanup_old_versions(
        older_than=timedelta(days=36500), delete_unverified=True, error_if_tagged_old_versions=False
    )


def _delete(dataset: lance.LanceDataset, ids: Collection[str], condition: str | None) -> int:
    wanted = pa.array(sorted(ids), pa.string())
    present = [
        id_
        for batch in dataset.scanner(columns=["id"]).to_batches()
        for id_ in batch["id"].filter(pc.is_in(batch["id"], wanted)).to_pylist()
    ]
    parts = [present[start : start + IDS_PER_DELETE] for start in range(0, len(present), IDS_PER_DELETE)]
    conditions = [f"id IN ({', '.join(map(sql_literal, part))})" for part in parts]
    conditions += [] if condition is None else [condition]
    return sum(int(dataset.delete(rows)["num_deleted_rows"]) for rows in conditions)


def _rebuild_indices(dataset: lance.LanceDataset) -> tuple[str, ...]:
    """Build all indices again, since their files hold values of removed rows; return those that could only be dropped."""
    dropped = []
    for index in dataset.describe_indices():
        kind: Any = index.index_type.upper()
        if kind in _INDEX_TYPES and len(index.field_names) == 1:
            dataset.create_scalar_index(index.field_names[0], kind, name=index.name, replace=True)
        else:
            dataset.drop_index(index.name)
            dropped.append(index.name)
    return tuple(dropped)


def _release_tags(dataset: lance.LanceDataset, kept_version: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Move the tags of a version and of later ones to the newest, and remove those of older ones; return both."""
    moved, removed = [], []
    for name, tag in dataset.tags.list().items():
        if tag["version"] >= kept_version:
            dataset.tags.update(name, dataset.version)
            moved.append(name)
        else:
            dataset.tags.delete(name)
            removed.append(name)
    return tuple(sorted(moved)), tuple(sorted(removed))


def _check(table: Path, ids: Collection[str]) -> None:
    """Check that one version is left, and that it has none of the ids and no rows that are only marked as deleted."""
    dataset = lance.dataset(str(table))
    versions = [v["version"] for v in dataset.versions()]
    marked = sum(fragment.num_deletions for fragment in dataset.get_fragments())
    wanted = pa.array(sorted(ids), pa.string())
    left = sum(pc.sum(pc.is_in(batch["id"], wanted)).as_py() or 0 for batch in dataset.scanner(columns=["id"]).to_batches())
    used = {file.path for fragment in dataset.get_fragments() for file in fragment.metadata.files}
    unused = _names(table / "data") - used
    if len(versions) > 1 or marked or left or unused:
        raise Failure(
            f"{table}: after the erasure {len(versions)} versions, {left} of the rows, {marked} rows marked as deleted and "
            f"{len(unused)} unused files are left; run it again with --resume"
        )


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
