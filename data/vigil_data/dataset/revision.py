"""New versions of a dataset, each one atomic commit with its :class:`.Change`: new rows, fewer rows, and new values of columns.

Whatever writes holds :func:`~vigil_data.dataset.writer_lock.writing`. A commit is refused if the version that it started from is
no longer the newest, so that no change is lost even where the lock does not reach, such as between hosts.

Example:
    >>> table = pa.table({"id": ["p1", "p2"], "language": ["en", None]})
    >>> write_columns("datasets/posts", table, Change("enrich language", reason="markets report"))
    4
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lance.commit import CommitConflictError
from lance.fragment import write_fragments
from lance.schema import LanceSchema

from vigil_data.dataset.history import Change
from vigil_data.dataset.table_schema import ITEMS, PROVENANCE, PROVENANCE_TYPE, SAMPLING, SEGMENTS, TARGET, is_column, is_label
from vigil_data.dataset.writer_lock import writing
from vigil_data.errors import Failure, UserError, capped, one_line
from vigil_data.filesystem import StrPath, remove
from vigil_data.lineage import Input, dataset_node, record


def append_rows(
    path: StrPath,
    base: lance.LanceDataset | None,
    rows: pa.RecordBatchReader,
    change: Change,
    *,
    inputs: Sequence[Input] = (),
    facts: Mapping[str, Any] | None = None,
) -> int:
    """Add rows as one version; columns that are new are null in older rows.

    Args:
        path: the dataset's folder.
        base: the version that the rows are added to; ``None`` makes a dataset where there is none.
        rows: all columns of the dataset, those of ``base`` first and in its order, then new ones.
        change: what the new version is.
        inputs: what else it is made from, for the lineage.
        facts: how, for the lineage.

    Returns:
        The new version.

    Raises:
        UserError: if another process wrote a version in the meantime; nothing is changed then.
    """
    schema = LanceSchema.from_pyarrow(rows.schema)
    if base is not None:
        _check_field_ids(path, base, schema)
    table = str(Path(path) / "items.lance")
    if base is None:
        remove(Path(table))  # what is left of a first import that was killed has no version
    storage = base.data_storage_version if base is not None else None
    written = write_fragments(
        rows, table, rows.schema, mode="create" if base is None else "overwrite", data_storage_version=storage
    )
    if base is None:
        return _commit(path, None, lance.LanceOperation.Overwrite(schema, written), change, inputs=inputs, facts=facts)
    old = [fragment.metadata for fragment in base.get_fragments()]
    first = max((fragment.id for fragment in old), default=-1) + 1
    new = [replace(fragment, id=first + index) for index, fragment in enumerate(written)]
    return _commit(path, base, lance.LanceOperation.Merge([*old, *new], schema), change, inputs=inputs, facts=facts)


def write_columns(
    path: StrPath, table: pa.Table, change: Change, *, base: int | None = None, inputs: Sequence[Input] = ()
) -> int:
    """Set columns of some rows as one version; media and other columns are not read or written.

    Args:
        path: the dataset's folder.
        table: column ``id``, and the columns to set: every cell is set, to null if it is null. Columns that the dataset lacks
            are added, and are null in the other rows. It may be memory-mapped: what is in memory at once is the part of one file
            of the dataset (at most 1,048,576 rows).
        change: what the new version is.
        base: version that the values were computed from; if it is no longer the newest, nothing is written.
        inputs: what the values are from, for the lineage.

    Returns:
        The new version; the newest one if the table has no rows.

    Raises:
        UserError: for ids that the dataset lacks or that are not unique, values of another type than the column, targets outside
            [0, 1], invalid names of new columns, and if another process wrote or writes a version. Nothing is changed then.
    """
    with writing(path):
        dataset = lance.dataset(str(Path(path) / "items.lance"))
        if base is not None and base != dataset.version:
            raise UserError(f"dataset {path} has changed since version {base}; it is at {dataset.version}: run the command again")
        if not table.num_rows:
            return int(dataset.version)
        table = _castable(path, table, dataset.schema)
        known = [name for name in table.column_names if name != "id" and name in dataset.schema.names]
        added = [name for name in table.column_names if name not in dataset.schema.names]
        rows_by_fragment = _rows_by_fragment(path, dataset, table["id"])
        schema = dataset.lance_schema
        fragments = []
        for fragment in dataset.get_fragments():
            files = fragment.metadata.files
            if (rows := rows_by_fragment.get(fragment.fragment_id)) is not None:
                ids, numbers = rows
                part = table.take(numbers).append_column("_rowid", pa.array(ids))
                if known:
                    files = fragment.update_columns(part.select(["_rowid", *known]))[0].files
                if added:
                    merged, schema = fragment.merge(part.select(["_rowid", *added]), "_rowid")
                    files = [*files, *merged.files[len(fragment.metadata.files) :]]
            # A file without any current column is only part of the older versions.
            fragments.append(
                replace(fragment.metadata, files=[file for file in files if any(number >= 0 for number in file.fields)])
            )
        return _commit(path, dataset, lance.LanceOperation.Merge(fragments, schema), change, inputs=inputs)


def delete_rows(path: StrPath, rows: Sequence[int], change: Change, *, base: int) -> int:
    """Delete rows as one version; older versions still have them.

    Args:
        path: the dataset's folder.
        rows: row numbers in version ``base``.
        change: what the new version is.
        base: version that the row numbers are of; if it is no longer the newest, nothing is written.

    Returns:
        The new version.

    Raises:
        UserError: if the dataset has changed since ``base``, or another process writes.
    """
    with writing(path):
        dataset = lance.dataset(str(Path(path) / "items.lance"))
        if base != dataset.version:
            raise UserError(f"dataset {path} has changed since version {base}; it is at {dataset.version}: run the command again")
        stored = dataset.scanner(columns=[], with_row_id=True, scan_in_order=True).to_table()
        rowid_N = np.sort(stored["_rowid"].to_numpy())[np.asarray(rows, np.int64)]
        changed, gone = [], []
        for fragment in dataset.get_fragments():
            if (ids := rowid_N[rowid_N >> 32 == fragment.fragment_id]).size:
                left = fragment.delete(f"_rowid IN ({', '.join(map(str, ids.tolist()))})")
                gone += [fragment.fragment_id] if left is None else []
                changed += [] if left is None else [left]
        return _commit(path, dataset, lance.LanceOperation.Delete(changed, gone, "rows by number"), change)


def _commit(
    path: StrPath,
    base: lance.LanceDataset | None,
    operation: lance.LanceOperation.BaseOperation,
    change: Change,
    *,
    inputs: Sequence[Input] = (),
    facts: Mapping[str, Any] | None = None,
) -> int:
    """Make one version, and record its lineage; a merge conflicts with every other change since ``base``."""
    transaction = lance.Transaction(0 if base is None else base.version, operation, transaction_properties=change.to_properties())
    try:
        committed = lance.LanceDataset.commit(
            str(Path(path) / "items.lance") if base is None else base, transaction, max_retries=0
        )
    except CommitConflictError:
        raise UserError(
            f"dataset {path}: another process wrote a version in the meantime, so nothing was changed; run the command again"
        ) from None
    place = str(Path(path).resolve())
    before = [] if base is None else [dataset_node(place, base).as_input("version")]
    record(dataset_node(place, committed, operation=change.operation, **(facts or {})), [*before, *inputs])
    return int(committed.version)


def _check_field_ids(path: StrPath, base: lance.LanceDataset, schema: LanceSchema) -> None:
    """Check that the columns of new files get the numbers that they have in the old ones, and new columns unused ones."""
    old, new = _field_ids(base.lance_schema.fields()), _field_ids(schema.fields())
    if new[: len(old)] != old or any(number <= base.max_field_id for number in new[len(old) :]):
        raise Failure(
            f"dataset {path}: another program removed or reordered columns of items.lance, so no rows can be added; import "
            "into a new dataset"
        )


def _field_ids(fields: Sequence[object]) -> list[int]:
    return [number for field in fields for number in (field.id(), *_field_ids(field.children()))]  # type: ignore[attr-defined]


def _castable(path: StrPath, table: pa.Table, stored: pa.Schema) -> pa.Table:
    """Return the table with the types of the stored columns, and of the standard ones."""
    types = {field.name: field.type for field in (*ITEMS, *SAMPLING, *SEGMENTS, *stored)}
    lowered = {name.lower(): name for name in stored.names}
    problems = []
    for index, field in enumerate(table.schema):
        name = field.name
        is_target = name.startswith(TARGET)
        prefix = next((prefix for prefix in (TARGET, PROVENANCE) if name.startswith(prefix)), "")
        if prefix:
            types[name] = pa.float32() if is_target else PROVENANCE_TYPE
        allowed = is_label(name.removeprefix(prefix)) if prefix else name in types or is_column(name)
        if not allowed or lowered.get(name.lower(), name) != name:
            problems.append(f"a column cannot be called {name!r}")
            continue
        wanted = types.setdefault(name, pa.string() if pa.types.is_null(field.type) else field.type)
        try:
            table = table.set_column(index, name, table[name].cast(wanted))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            problems.append(f"column {name}: values of type {field.type} are not {wanted}: {str(error).splitlines()[0]}")
            continue
        if (
            is_target
            and not pc.all(pc.and_(pc.greater_equal(table[name], 0), pc.less_equal(table[name], 1)), min_count=0).as_py()
        ):
            problems.append(f"column {name}: a target is outside [0, 1]")
    if "id" not in table.column_names or table["id"].null_count:
        problems.append("a row has no id")
    elif pc.count_distinct(table["id"]).as_py() < table.num_rows:
        problems.append("an id is in more than one row")
    if problems:
        raise UserError(*capped([one_line(f"dataset {path}: {problem}") for problem in problems]))
    return table


def _rows_by_fragment(path: StrPath, dataset: lance.LanceDataset, ids: pa.ChunkedArray) -> dict[int, tuple[pa.Array, pa.Array]]:
    """Return fragment to the row ids in it and the rows of ``ids`` that they have."""
    stored = dataset.scanner(columns=["id"], with_row_id=True, scan_in_order=True).to_table()
    number_N = pc.index_in(stored["id"], ids.combine_chunks())
    rowid_M = stored["_rowid"].filter(number_N.is_valid()).to_numpy()
    number_M = number_N.drop_null().to_numpy()
    if len(number_M) < len(ids):
        absent = np.setdiff1d(np.arange(len(ids)), number_M)
        named = ", ".join(ids[int(number)].as_py() for number in absent[:5])
        raise UserError(one_line(f"dataset {path} has no item {named}" + (f" and {len(absent) - 5} more" * (len(absent) > 5))))
    fragment_M = rowid_M >> 32
    ends = [*(np.flatnonzero(np.diff(fragment_M)) + 1).tolist(), len(fragment_M)]
    parts, start = {}, 0
    for end in ends:
        parts[int(fragment_M[start])] = (pa.array(rowid_M[start:end]), pa.array(number_M[start:end]))
        start = end
    return parts
