"""From parts to one table: checked against the dataset, written as a stream, and under its name only when it is whole."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vigil_data.errors import Failure, UserError
from vigil_serving.scoring.job_spec import Rows
from vigil_serving.scoring.shards import Damaged, Parts, sync
from vigil_serving.scoring.workdir import remove

GROUP = 1 << 16
"""Rows of one row group of a Parquet file; memory holds so many."""
MARK = b"vigil.bundle"
"""In the metadata of every table that was made here."""


@dataclass(slots=True)
class Tally:
    """What parts hold: the number of items, of those in error, and of each label and action."""

    items: int = 0
    errors: int = 0
    decided: dict[str, int] = field(default_factory=dict)
    actions: dict[str, int] = field(default_factory=dict)


def refuse(to: Path) -> None:
    """Refuse an output that cannot be written, or would take the place of something else.

    Raises:
        UserError: if so.
    """
    if to.suffix not in (".parquet", ".lance"):
        raise UserError(f"--to {to}: must end in .parquet (one file) or .lance (a Lance table)")
    if to.suffix == ".parquet" and to.is_dir():
        raise UserError(f"--to {to}: is a folder; name the Parquet file to write")
    if os.path.lexists(to) and MARK not in _metadata(to):
        raise UserError(f"--to {to}: is there already and was not made by `vigil score`; name another, or remove it")


def check(parts: Parts, rows: Rows, tally: Tally) -> None:
    """Compare the ids of all parts with those of the dataset's rows, one by one, and count.

    Args:
        parts: all of them are there.
        rows: what was scored.
        tally: is added to.

    Raises:
        Failure: if a part is damaged or holds other items.
    """
    for number in range(parts.plan.parts):
        table = _read(parts, number)
        ids = rows.dataset.table(["id"], rows.numbers[parts.plan.span(number)])["id"]
        if table["id"].combine_chunks() != ids.combine_chunks():
            raise Failure(f"{parts.file(number)}: holds other items than the dataset's rows; throw the parts away with --restart")
        _count(table, tally)
    if tally.items != (wanted := len(rows.numbers)):
        raise Failure(f"{parts.folder}: holds {tally.items} items instead of {wanted}; throw the parts away with --restart")


def join(parts: Parts, schema: pa.Schema, metadata: Mapping[str, str], to: Path) -> None:
    """Write all parts in order as one table.

    Args:
        parts: checked.
        schema: their columns.
        metadata: of the table.
        to: a .parquet file or a .lance folder; an older one is replaced in the same step.

    Raises:
        Failure: if the disk does not take it.
    """
    partial, write = parts.folder / f".{to.name}.partial", _write_parquet if to.suffix == ".parquet" else _write_lance
    try:
        count = write(partial, schema.with_metadata(dict(metadata)), parts)
        if count != parts.plan.rows:
            raise Failure(f"{to}: {count} rows were written instead of {parts.plan.rows}; start the same command again")
        _replace(partial, to)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)).splitlines()[0]
        raise Failure(f"{to}: cannot be written: {reason}; mend that and start the same command again; parts are kept") from None
    finally:
        remove(partial)


def _metadata(to: Path) -> Mapping[bytes, bytes]:
    try:
        schema = pq.read_schema(to) if to.suffix == ".parquet" else lance.dataset(str(to)).schema
    except (OSError, ValueError, RuntimeError):
        return {}
    return schema.metadata or {}


def _read(parts: Parts, number: int) -> pa.Table:
    try:
        return parts.read(number)
    except Damaged as reason:
        raise Failure(f"{parts.file(number)}: {reason}; start the same command again, which scores it anew") from None


def _count(table: pa.Table, tally: Tally) -> None:
    tally.items += table.num_rows
    tally.errors += table.num_rows - table["error"].null_count
    for name in table.column_names:
        if name.startswith("decision."):
            label = name.removeprefix("decision.")
            tally.decided[label] = tally.decided.get(label, 0) + (pc.sum(table[name]).as_py() or 0)
    if "action" in table.column_names:
        for entry in pc.value_counts(table["action"].drop_null()).to_pylist():
            tally.actions[entry["values"]] = tally.actions.get(entry["values"], 0) + entry["counts"]


def _groups(parts: Parts, schema: pa.Schema) -> Iterator[pa.Table]:
    """Parts in order, some of them together."""
    held: list[pa.Table] = [schema.empty_table()]
    for number in range(parts.plan.parts):
        held.append(_read(parts, number).replace_schema_metadata(schema.metadata))
        if sum(table.num_rows for table in held) >= GROUP:
            yield pa.concat_tables(held).unify_dictionaries().combine_chunks()
            held = []
    if held:
        yield pa.concat_tables(held).unify_dictionaries().combine_chunks()


def _write_parquet(partial: Path, schema: pa.Schema, parts: Parts) -> int:
    with pq.ParquetWriter(partial, schema) as writer:
        for table in _groups(parts, schema):
            writer.write_table(table, row_group_size=GROUP)
    sync(partial)
    return int(pq.read_metadata(partial).num_rows)


def _write_lance(partial: Path, schema: pa.Schema, parts: Parts) -> int:
    """Lance takes no dot in a name: it is ``probability:LABEL``, as datasets have ``target:LABEL``."""
    renamed = pa.schema([field.with_name(field.name.replace(".", ":", 1)) for field in schema], schema.metadata)
    batches = (batch for table in _groups(parts, schema) for batch in table.rename_columns(renamed.names).to_batches())
    lance.write_dataset(pa.RecordBatchReader.from_batches(renamed, batches), str(partial), schema=renamed, mode="create")
    for path in [partial, *partial.rglob("*")]:
        sync(path)
    return int(lance.dataset(str(partial)).count_rows())


def _replace(partial: Path, to: Path) -> None:
    """Give the table its name. A folder cannot take another's place in one step: the former one waits among the parts."""
    if to.suffix == ".lance" and to.exists():
        to.rename(partial.with_name(f".{to.name}.former.partial"))
    partial.rename(to)
    sync(to.parent)
