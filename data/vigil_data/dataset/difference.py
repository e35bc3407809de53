"""Difference of two versions of a dataset: rows added, removed and changed, cells of labels and of other columns.

What is in memory at once are the ids and row addresses of both versions and a part of one column. Rows whose file of a column is
the same in both versions are not read. Images and audio are compared by their digests.

Example:
    >>> difference = compare("datasets/posts", 3, 4)
    >>> len(difference.added), difference.labels["spam"].changed
    (120, 7)
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.table_schema import PROVENANCE, TARGET
from vigil_data.filesystem import StrPath
from vigil_data.progress import ProgressCallback

_PAYLOADS = ("image", "audio")
"""Columns that are compared by the column ``digests``."""

_CHUNK_ROWS = 16_384


@dataclass(slots=True)
class Cells:
    """Cells of a column in the rows that both versions have.

    Attributes:
        set: number that were null and have a value now.
        changed: number whose value differs.
        unset: number that had a value and are null now.
    """

    set: int = 0
    changed: int = 0
    unset: int = 0

    def __bool__(self) -> bool:
        return bool(self.set or self.changed or self.unset)


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between two versions.

    Attributes:
        old: the older version.
        new: the newer version.
        added: ids of the rows that only the newer version has, in its order.
        removed: ids of the rows that only the older version has, in its order.
        changed: ids of the rows of both with a different value in some column, in the newer version's order.
        labels: label to its cells, for labels with a difference.
        columns: other column to its cells, for columns with a difference; ``digests`` stands for images and audio.
        columns_added: columns that only the newer version has.
        columns_removed: columns that only the older version has.
    """

    old: int
    new: int
    added: list[str]
    removed: list[str]
    changed: list[str]
    labels: dict[str, Cells] = field(default_factory=dict)
    columns: dict[str, Cells] = field(default_factory=dict)
    columns_added: list[str] = field(default_factory=list)
    columns_removed: list[str] = field(default_factory=list)


def compare(path: StrPath, old: int, new: int | None = None, *, progress: ProgressCallback | None = None) -> Difference:
    """Compare two versions of a dataset.

    Args:
        path: the dataset's folder.
        old: the older version.
        new: the newer version (default: the newest).
        progress: called with the number of columns compared.

    Raises:
        UserError: if there is no dataset, or it lacks a version.
    """
    before, after = _Version(Dataset(path, old)), _Version(Dataset(path, new))
    in_old_N = pc.index_in(after.ids, before.ids)
    common_new = np.flatnonzero(in_old_N.is_valid().to_numpy(zero_copy_only=False))
    common_old = in_old_N.drop_null().to_numpy().astype(np.int64)
    removed_N = np.ones(len(before.ids), np.bool_)
    removed_N[common_old] = False
    changed_N = np.zeros(len(common_new), np.bool_)
    names = [name for name in dict.fromkeys([*before.names, *after.names]) if name != "id" and name not in _PAYLOADS]
    labels: dict[str, Cells] = {}
    columns: dict[str, Cells] = {}
    for done, name in enumerate(names, 1):
        cells = Cells()
        suspects = np.flatnonzero(_may_differ(before, after, name, common_old, common_new))
        for at, was, now in _chunks(before, after, name, suspects, (common_old, common_new)):
            had, has = (pc.is_valid(column).to_numpy(zero_copy_only=False) for column in (was, now))
            cells.set += int((~had & has).sum())
            cells.unset += int((had & ~has).sum())
            differs = _differ(was, now) & had & has
            cells.changed += int(differs.sum())
            changed_N[at] |= differs | (had != has)
        if cells:
            (labels if name.startswith(TARGET) else columns)[name.removeprefix(TARGET)] = cells
        if progress is not None:
            progress("comparing", done, len(names))
    return Difference(
        before.version,
        after.version,
        after.ids.filter(in_old_N.is_null()).to_pylist(),
        before.ids.filter(pa.array(removed_N)).to_pylist(),
        after.ids.take(pa.array(common_new[changed_N])).to_pylist(),
        labels,
        {name: cells for name, cells in columns.items() if not name.startswith(PROVENANCE)},
        [name for name in after.names if name not in before.names],
        [name for name in before.names if name not in after.names],
    )


class _Version:
    """One version: ids and addresses of its rows, and which file has a column of a fragment."""

    def __init__(self, dataset: Dataset) -> None:
        self._lance = lance.dataset(str(dataset.path / "items.lance"), version=dataset.version)
        keys = self._lance.scanner(columns=["id"], with_row_address=True, scan_in_order=True).to_table()
        self.version = dataset.version
        self.names = list(dataset.schema.names)
        self.types = {field.name: field.type for field in dataset.schema}
        self.ids: pa.Array = keys["id"].combine_chunks()
        self.address_N: NDArray[np.uint64] = keys["_rowaddr"].to_numpy()

    def files(self, name: str) -> dict[int, list[tuple[int, str]]]:
        """Return fragment to the files of a column, each with the number of a field in it."""
        field = next((field for field in self._lance.lance_schema.fields() if field.name() == name), None)
        numbers = set(_leaves(field)) if field is not None else set()
        return {
            fragment.fragment_id: [
                (number, str(file.path)) for file in fragment.metadata.files for number in file.fields if number in numbers
            ]
            for fragment in self._lance.get_fragments()
        }

    def take(self, name: str, rows: NDArray[np.int64]) -> pa.Array:
        """Return values of a column in some rows; nulls if the version lacks the column."""
        if name not in self.types:
            return None
        column = self._lance.take(pa.array(rows), columns=[name])[name]
        return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _leaves(field: Any) -> list[int]:
    """Return the numbers of a field and of the fields in it."""
    return [field.id(), *(number for child in field.children() for number in _leaves(child))]


def _may_differ(
    before: _Version, after: _Version, name: str, common_old: NDArray[np.int64], common_new: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return whether each common row is elsewhere in the newer version, or in a file that was written since."""
    old_files, new_files = before.files(name), after.files(name)
    same = [fragment for fragment, files in new_files.items() if old_files.get(fragment) == files]
    address_M = after.address_N[common_new]
    in_same_file = np.isin(address_M >> np.uint64(32), np.array(same, np.uint64))
    moved: NDArray[np.bool_] = before.address_N[common_old] != address_M
    return moved | ~in_same_file


def _chunks(
    before: _Version, after: _Version, name: str, suspects: NDArray[np.int64], common: tuple[NDArray[np.int64], ...]
) -> Iterator[tuple[NDArray[np.int64], pa.Array, pa.Array]]:
    for start in range(0, len(suspects), _CHUNK_ROWS):
        at = suspects[start : start + _CHUNK_ROWS]
        was, now = (of.take(name, rows[at]) for of, rows in zip((before, after), common, strict=True))
        yield at, *(pa.nulls(len(at), before.types.get(name) or after.types[name]) if c is None else c for c in (was, now))


def _differ(was: pa.Array, now: pa.Array) -> NDArray[np.bool_]:
    """Return whether values differ; where one is null, false."""
    if was.type != now.type or pa.types.is_nested(was.type):
        pairs = zip(was.to_pylist(), now.to_pylist(), strict=True)
        return np.array([one is not None and other is not None and one != other for one, other in pairs], np.bool_)
    differs: NDArray[np.bool_] = pc.fill_null(pc.not_equal(was, now), False).to_numpy(zero_copy_only=False)
    return differs
