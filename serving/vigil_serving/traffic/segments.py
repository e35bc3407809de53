"""Segments: Arrow streams that a kill leaves readable up to the last batch that was written."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

TORN = (pa.ArrowInvalid, OSError)
"""What pyarrow raises at the end of a stream whose last message was cut off."""


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
            yield batch


def segment_schema(file: Path) -> pa.Schema | None:
    """Return the columns of a segment; ``None`` before they are written.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    with pa.OSFile(str(file), "rb") as source:
        try:
            return pa.ipc.open_stream(source).schema
        except TORN:
            return None
