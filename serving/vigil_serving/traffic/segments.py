"""Segments: Arrow streams that a kill leaves readable up to the last batch, and that then become Parquet files.

The process that writes a segment holds a lock (flock) on it. A lock ends with its process, so that whoever starts next finds the
segments of the dead, and of them alone.
"""

import fcntl
import io
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vigil_data.filesystem import recover_file, replaced_file
from vigil_serving.traffic.folder import SEGMENT, day_folder, days_of, parquet_of

TORN = (pa.ArrowInvalid, OSError)
"""What pyarrow raises at the end of a stream whose last message was cut off."""
ROW_GROUP_ROWS = 1 << 16
"""Rows per row group of a Parquet file; as many are in memory while it is written."""
OPENING = ".opening"
"""Suffix of a segment that is not locked yet."""
OPENING_SECONDS = 60.0
"""Age at which such a file is a leftover: a younger one may be locked by its process the next moment."""


class Segment:
    """A segment that this process writes.

    Args:
        folder: the log.
        day: day of its rows, UTC.
        schema: their columns.

    Attributes:
        file: its file.
        day: day of its rows.
        bytes: size of its complete batches.
        rows: number of its rows.
        opened: when it was made, by the monotonic clock.

    Raises:
        OSError: if the file cannot be made, such as on a full disk.
    """

    def __init__(self, folder: Path, day: date, schema: pa.Schema) -> None:
        name = f"_part-{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}{SEGMENT}"  # names sort by age
        self.day, self.opened, self.rows = day, time.monotonic(), 0
        self.file = day_folder(folder, day) / name
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # Locked under another name first: a process that starts at this moment must not find it unlocked.
        opening = self.file.with_name(f".{name}{OPENING}")
        self._descriptor = os.open(opening, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._buffer = io.BytesIO()
            # One thread: handing some kilobytes of each column to others costs more than compressing them.
            options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
            self._stream = pa.ipc.new_stream(self._buffer, schema, options=options)
            self._stream.write_batch(_no_rows(schema))  # with it the schema
            self.bytes = 0
            self._write(self._message())
            opening.rename(self.file)
        except OSError:
            os.close(self._descriptor)
            opening.unlink(missing_ok=True)
            raise

    def append(self, batch: pa.RecordBatch) -> int:
        """Append a batch and flush it to disk; return its bytes.

        Raises:
            OSError: if it cannot be written; the segment is as it was before.
        """
        self._stream.write_batch(batch)
        message = self._message()
        self._write(message)
        self.rows += batch.num_rows
        return len(message)

    def _message(self) -> bytes:
        """Return what the stream wrote since the last call."""
        message = self._buffer.getvalue()
        self._buffer.seek(0)
        self._buffer.truncate()
        return message

    def _write(self, message: bytes) -> None:
        # Also before: what an earlier failure left may be longer than this message.
        os.ftruncate(self._descriptor, self.bytes)
        try:
            written = 0
            while written < len(message):
                written += os.pwrite(self._descriptor, memoryview(message)[written:], self.bytes + written)
            os.fdatasync(self._descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self.bytes)
            raise
        self.bytes += len(message)

    def finish(self) -> None:
        """Turn the segment into its Parquet file, and release it.

        Raises:
            Failure: if the file cannot be written; the segment stays, and this can be called again.
        """
        to_parquet(self.file)
        self.release()

    def release(self) -> None:
        """Close the file, which ends the lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def recover(folder: Path) -> int:
    """Turn the segments of processes that have died into Parquet files; return their number.

    Raises:
        Failure: if a file cannot be written.
    """
    count = 0
    for _, path in days_of(folder):
        for file in sorted([*path.glob(f"_part-*{SEGMENT}"), *path.glob(f"._part-*{OPENING}")]):
            try:
                if file.name.endswith(OPENING) and time.time() - file.stat().st_mtime < OPENING_SECONDS:
                    continue
                descriptor = os.open(file, os.O_RDWR)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not file.exists():  # another process has just recovered it
                    continue
                if file.name.endswith(OPENING):
                    file.unlink()
                    continue
                to_parquet(file)
                count += 1
            except BlockingIOError:  # its process is alive
                continue
            finally:
                os.close(descriptor)
    return count


def to_parquet(file: Path) -> None:
    """Write the complete batches of a segment as its Parquet file, and remove the segment; only its lock's owner may do this.

    A kill leaves the segment, or the Parquet file and the segment, which readers then ignore.

    Raises:
        Failure: if the file cannot be written.
    """
    to = parquet_of(file)
    if not to.exists():
        recover_file(to)
        batches = read_segment(file)
        if (first := next(batches, None)) is not None:
            with replaced_file(to) as partial, pq.ParquetWriter(partial, first.schema, compression="zstd") as writer:
                pending, rows = [first], first.num_rows
                for batch in batches:
                    pending.append(batch)
                    rows += batch.num_rows
                    if rows >= ROW_GROUP_ROWS:
                        writer.write_table(pa.Table.from_batches(pending))
                        pending, rows = [], 0
                if pending:
                    writer.write_table(pa.Table.from_batches(pending))
    file.unlink(missing_ok=True)


def read_segment(file: Path) -> Iterator[pa.RecordBatch]:
    """Yield the complete batches of a segment; what follows the last one, such as the first half of another, is ignored.

    Raises:
        FileNotFoundError: if there is no such file, such as after it has become a Parquet file.
    """
    with pa.OSFile(str(file), "rb") as source:
        try:
            stream = pa.ipc.open_stream(source)
        except TORN:
            return
        while True:
            try:
                batch = stream.read_next_batch()
            except (StopIteration, *TORN):
                return
            if batch.num_rows:
                yield batch


def _no_rows(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)
