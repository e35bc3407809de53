"""Merge of shards into one table: checked against the dataset, written as a stream, and renamed into place when complete."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vigil_data.errors import Failure, UserError
from vigil_data.filesystem import replaced_file, replaced_folder
from vigil_serving.scoring.job_spec import SelectedRows
from vigil_serving.scoring.shards import DamagedShard, Shards, resume_hint

ROW_GROUP_ROWS = 1 << 16
"""Rows per row group of a Parquet file; as many are in memory."""
TABLE_MARKER = b"vigil.bundle"
"""Metadata key of every table written here."""


@dataclass(slots=True)
class DecisionCounts:
    """Number of items, of undecodable items, of items with a bound for a probability, and of each label and action."""

    items: int = 0
    errors: int = 0
    bounded: int = 0
    decided: dict[str, int] = field(default_factory=dict)
    actions: dict[str, int] = field(default_factory=dict)


def check_output(to: Path, *, marker: bytes = TABLE_MARKER, command: str = "vigil score") -> None:
    """Check that an output can be written and replaces nothing but a table of the same command.

    Args:
        to: the output.
        marker: metadata key of every table that the command writes.
        command: name of the command.

    Raises:
        UserError: if not.
    """
    if to.suffix not in (".parquet", ".lance"):
        raise UserError(f"--to {to}: must end in .parquet (one file) or .lance (a Lance table)")
    if to.suffix == ".parquet" and to.is_dir():
        raise UserError(f"--to {to}: is a folder; name the Parquet file to write")
    if os.path.lexists(to) and marker not in _metadata(to):
        raise UserError(f"--to {to}: already exists and was not written by `{command}`; name another output, or remove it")


def check_shards(shards: Shards[Any], rows: SelectedRows, counts: DecisionCounts) -> None:
    """Compare the ids of all shards with the dataset's rows, and count decisions.

    Args:
        shards: all of them exist.
        rows: the rows that were scored.
        counts: the counts are added to it.

    Raises:
        Failure: if a shard is damaged or has other items.
    """
    for number in range(shards.job.shards):
        with _damage_fails():
            table = shards.read(number)
        ids = rows.dataset.table(["id"], rows.numbers[shards.job.span(number)])["id"]
        if table["id"].combine_chunks() != ids.combine_chunks():
            raise Failure(f"{shards.file(number)}: its items are not the dataset's rows; discard the shards with --restart")
        _count(table, counts)
    if counts.items != (wanted := len(rows.numbers)):
        raise Failure(f"{shards.folder}: has {counts.items} items instead of {wanted}; discard the shards with --restart")


def merge_shards(shards: Shards[Any], schema: pa.Schema, metadata: Mapping[str, str], to: Path) -> None:
    """Write all shards, in order, as one table.

    Args:
        shards: checked shards.
        schema: their columns.
        metadata: metadata of the table.
        to: a .parquet file or a .lance folder; an existing one is replaced.

    Raises:
        Failure: if it cannot be written.
    """
    schema = schema.with_metadata(dict(metadata))
    with _damage_fails(), resume_hint(to):
        if to.suffix == ".parquet":
            with replaced_file(to) as file:
                _check_count(_write_parquet(file, schema, shards), shards, to)
        else:
            with replaced_folder(to, replaces=lambda _: True) as folder:
                _check_count(_write_lance(folder, schema, shards), shards, to)


@contextmanager
def _damage_fails() -> Iterator[None]:
    try:
        yield
    except DamagedShard as error:
        raise Failure(f"{error}; run the same command again to score it again") from None


def _metadata(to: Path) -> Mapping[bytes, bytes]:
    try:
        schema = pq.read_schema(to) if to.suffix == ".parquet" else lance.dataset(str(to)).schema
    except (OSError, ValueError, RuntimeError):
        return {}
    return schema.metadata or {}


def _count(table: pa.Table, counts: DecisionCounts) -> None:
    counts.items += table.num_rows
    counts.errors += table.num_rows - table["error"].null_count
    if "bounded" in table.column_names:  # only of LLM servers
        counts.bounded += pc.sum(pc.greater(pc.list_value_length(table["bounded"]), 0)).as_py() or 0
    for name in table.column_names:
        if name.startswith("decision."):
            label = name.removeprefix("decision.")
            counts.decided[label] = counts.decided.get(label, 0) + (pc.sum(table[name]).as_py() or 0)
    if "action" in table.column_names:
        for entry in pc.value_counts(table["action"].drop_null()).to_pylist():
            counts.actions[entry["values"]] = counts.actions.get(entry["values"], 0) + entry["counts"]


def _row_groups(shards: Shards[Any], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the shards in order, concatenated to tables of about :data:`ROW_GROUP_ROWS`."""
    pending: list[pa.Table] = [schema.empty_table()]
    for number in range(shards.job.shards):
        pending.append(shards.read(number).replace_schema_metadata(schema.metadata))
        if sum(table.num_rows for table in pending) >= ROW_GROUP_ROWS:
            yield pa.concat_tables(pending).unify_dictionaries().combine_chunks()
            pending = []
    if pending:
        yield pa.concat_tables(pending).unify_dictionaries().combine_chunks()


def _write_parquet(file: Path, schema: pa.Schema, shards: Shards[Any]) -> int:
    with pq.ParquetWriter(file, schema) as writer:
        for table in _row_groups(shards, schema):
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    return int(pq.read_metadata(file).num_rows)


def _write_lance(folder: Path, schema: pa.Schema, shards: Shards[Any]) -> int:
    """Write a Lance table; since Lance allows no dot in names, columns are ``probability:LABEL``, like ``target:LABEL``."""
    renamed = pa.schema([field.with_name(field.name.replace(".", ":", 1)) for field in schema], schema.metadata)
    batches = (batch for table in _row_groups(shards, schema) for batch in table.rename_columns(renamed.names).to_batches())
    lance.write_dataset(pa.RecordBatchReader.from_batches(renamed, batches), str(folder), schema=renamed, mode="create")
    return int(lance.dataset(str(folder)).count_rows())


def _check_count(rows: int, shards: Shards[Any], to: Path) -> None:
    if rows != shards.job.rows:
        raise Failure(f"{to}: {rows} rows were written instead of {shards.job.rows}")
