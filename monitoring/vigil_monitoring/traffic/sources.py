"""Files of traffic: a part of a traffic log, a segment that a server still writes, or a Parquet table of any model's scores."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vigil_data.errors import UserError
from vigil_serving.traffic.folder import Part, parquet_of
from vigil_serving.traffic.segments import read_segment

BATCH_ROWS = 65_536
"""Most rows of a batch, which bounds memory."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file as it was when the traffic was opened.

    Attributes:
        file: the file.
        schema: its columns.
        rows: its rows then; later ones of a segment are not read.
        bytes: its size then.
        day: day of all its rows, if it is of a log.
        active: whether it was a segment.
    """

    file: Path
    schema: pa.Schema
    rows: int
    bytes: int
    day: date | None = None
    active: bool = False

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield those of ``columns`` that the file has, in the order of its rows.

        Raises:
            UserError: if the file was removed or damaged meanwhile.
        """
        names = [name for name in columns if name in self.schema.names]
        rest = self.rows
        for batch in self._all(names):
            taken = batch.select(names).slice(0, rest)
            rest -= taken.num_rows
            if taken.num_rows:
                yield taken
            if rest == 0:
                break
        if rest:
            raise UserError(f"{self.file}: has {rest:,} rows less than when it was opened; run the command again")

    def _all(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        if self.active:
            try:
                yield from read_segment(self.file)
                return
            except FileNotFoundError:  # it is a Parquet file by now, with the same rows in the same order
                pass
        file = parquet_of(self.file) if self.active else self.file
        try:
            with pq.ParquetFile(file) as opened:
                yield from opened.iter_batches(BATCH_ROWS, columns=names)
        except FileNotFoundError:
            raise UserError(f"{file}: was removed after it was opened, such as by retention; run the command again") from None
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{file}: cannot be read: {str(error).splitlines()[0]}; restore or remove it") from None


def table_source(file: Path, day: date | None = None) -> Source:
    """Return a Parquet file as a source.

    Raises:
        UserError: if it is not a readable Parquet file.
    """
    try:
        with pq.ParquetFile(file) as opened:
            return Source(file, opened.schema_arrow, opened.metadata.num_rows, file.stat().st_size, day)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{file}: not a readable Parquet file: {str(error).splitlines()[0]}; restore or remove it") from None


def log_source(part: Part) -> Source | None:
    """Return a file of a log as a source; ``None`` if it has no rows yet, or was removed since it was listed.

    Raises:
        UserError: if it is a Parquet file that cannot be read.
    """
    if part.active:
        rows, schema = 0, None
        try:
            size = part.file.stat().st_size
            for batch in read_segment(part.file):
                rows, schema = rows + batch.num_rows, batch.schema
        except FileNotFoundError:  # it has become a Parquet file, if it had any rows
            return log_source(Part(part.day, parquet_of(part.file), False))
        return None if schema is None else Source(part.file, schema, rows, size, part.day, True)
    try:
        return table_source(part.file, part.day)
    except UserError:
        if part.file.exists():
            raise
        return None
