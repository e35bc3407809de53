"""Lines of text files of any size, plain or compressed, in bounded memory.

The limits apply to the decompressed text, so that a small file that expands to gigabytes (a decompression bomb) is refused like a
large one.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from vigil_data.errors import UserError
from vigil_data.filesystem import why_not_a_file
from vigil_data.media_files import MAX_MEDIA_BYTES, megabytes

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Suffix of a compressed file to pyarrow's name of the format."""

MAX_LINE_BYTES = 16_000_000
"""Length of a line of JSON Lines, or of a record of CSV, above which it is an error."""

MAX_FIELD_BYTES = 4_000_000
"""Length of a text or of another value above which it is an error: about 700,000 words."""

MAX_SKIPPED_BYTES = 2_000_000_000
"""Length of a line above which the rest of the file is not read: it is no manifest."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of what an import holds in memory at once.

    Attributes:
        line: bytes of a line of JSON Lines; characters of a record of CSV.
        field: characters of a value.
        media: bytes of an image or audio file.
    """

    line: int = MAX_LINE_BYTES
    field: int = MAX_FIELD_BYTES
    media: int = MAX_MEDIA_BYTES


@contextmanager
def open_stream(file: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressed if its name ends in ``.gz`` or ``.zst``.

    Raises:
        UserError: if it is not a file, cannot be read, or is not compressed as its name ends.
    """
    import pyarrow as pa

    if why := why_not_a_file(file):
        raise UserError(f"{file} {why}")
    compression = COMPRESSIONS.get(file.suffix.lower())
    try:
        if compression is None:
            with file.open("rb") as stream:
                yield stream
        else:
            with pa.input_stream(str(file), compression=compression) as decompressed:
                yield cast("BinaryIO", io.BufferedReader(decompressed, 1 << 16))
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        broken = f"is not a sound {compression} file" if compression and not error.errno else "cannot be read"
        raise UserError(f"{file} {broken}: {reason}") from None


def skip_line(stream: BinaryIO, file: Path, length: int) -> int:
    """Read the rest of a line that is too long, in small parts; return the length of the line in bytes.

    Args:
        stream: positioned within the line.
        file: its name, for the message.
        length: bytes of the line that were read already.

    Raises:
        UserError: if the line does not end within :data:`MAX_SKIPPED_BYTES`.
    """
    while part := stream.readline(1 << 20):
        length += len(part)
        if part.endswith(b"\n"):
            break
        if length > MAX_SKIPPED_BYTES:
            raise UserError(f"{file} has a line of more than {megabytes(MAX_SKIPPED_BYTES)}; it is not a manifest")
    return length


class RecordTooLongError(Exception):
    """Error for a record of CSV that is longer than the limit."""


class CsvLines:
    """Lines for a CSV reader, which may combine several of them to one record; the length of a record is limited.

    Args:
        text: the file, opened without translation of line ends.
        limit: maximum length of a record in characters.

    Attributes:
        record: length of the current record so far; the caller sets it to 0 after each record.
    """

    def __init__(self, text: io.TextIOWrapper, limit: int) -> None:
        self._text, self._limit = text, limit
        self.record = 0

    def __iter__(self) -> "CsvLines":
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._limit + 1)
        self.record += len(line)
        if self.record > self._limit:
            raise RecordTooLongError
        if not line:
            raise StopIteration
        return line
