"""New rows of a dataset on disk until they are committed, so that the memory of an import is bounded."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_data.dataset.ingest import joined_schema
from vigil_data.dataset.table_schema import TARGET


class Spool:
    """Rows in chunks, each a file with its own columns.

    Args:
        folder: an empty folder for the files.
        tables: the rows.

    Attributes:
        rows: number of rows that are kept.
        skipped: number of rows that are left out.
    """

    def __init__(self, folder: Path, tables: Iterable[pa.Table]) -> None:
        self._chunks: list[Path] = []
        self._schemas: list[pa.Schema] = []
        self.rows = self.skipped = 0
        self._kept_N: NDArray[np.bool_] | None = None
        for number, table in enumerate(tables):
            self._chunks.append(folder / f"{number}.arrow")
            self._schemas.append(table.schema)
            self.rows += table.num_rows
            with pa.ipc.new_file(self._chunks[-1], table.schema) as writer:
                writer.write_table(table)

    def schema(self, stored: pa.Schema | None) -> pa.Schema:
        """Return the schema of stored and new rows together; see :func:`.joined_schema`."""
        return joined_schema(stored, self._schemas)

    def read(
        self, columns: Sequence[str], schema: pa.Schema, *, targets: bool = False, rows_N: NDArray[np.bool_] | None = None
    ) -> pa.Table:
        """Return columns of all rows, or of some.

        Args:
            columns: names of the columns.
            schema: all columns of the dataset.
            targets: read all targets, too.
            rows_N: which rows to read (default: all).
        """
        wanted = pa.schema([field for field in schema if field.name in columns or (targets and field.name.startswith(TARGET))])
        return pa.Table.from_batches(list(_chosen(self._batches(wanted), rows_N)), wanted)

    def skip(self, skipped_N: NDArray[np.bool_]) -> None:
        """Leave rows out of :meth:`batches`."""
        self._kept_N = ~skipped_N
        self.skipped = int(skipped_N.sum())
        self.rows -= self.skipped

    def kept_ids(self) -> Iterator[pa.Array]:
        """Yield the ids of the rows that are kept, in parts."""
        for batch in self.batches(pa.schema([("id", pa.string())])):
            yield batch["id"]

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yield the rows that are kept, in order, each with all columns of ``schema``."""
        return _chosen(self._batches(schema), self._kept_N)

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for chunk in self._chunks:
            with pa.memory_map(str(chunk)) as mapped:
                table = pa.ipc.open_file(mapped).read_all()
                for field in schema:
                    if field.name not in table.column_names:
                        table = table.append_column(field, pa.nulls(table.num_rows, field.type))
                yield from table.select(schema.names).cast(schema).to_batches()


def _chosen(batches: Iterator[pa.RecordBatch], rows_N: NDArray[np.bool_] | None) -> Iterator[pa.RecordBatch]:
    """Yield the chosen rows of batches; all without a choice."""
    start = 0
    for batch in batches:
        yield batch if rows_N is None else batch.filter(pa.array(rows_N[start : start + batch.num_rows]))
        start += batch.num_rows
