"""Follows a log file while it grows."""

import os
import time
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path

_CHUNK_BYTES = 1 << 16


def follow_log(
    path: str | PathLike[str], is_active: Callable[[], bool], poll_seconds: float = 0.5, check_seconds: float = 10.0
) -> Iterator[str]:
    """Yield the text of a file, and what is appended until its writer has ended.

    Args:
        path: file; it need not exist yet.
        is_active: whether the writer may still append; it asks Slurm, so it is called only every ``check_seconds``.
        poll_seconds: time between two reads at the end of the file.
        check_seconds: time between two calls of ``is_active``.

    Yields:
        Text in chunks that end with a line if possible.
    """
    offset, checked, active = 0, time.monotonic(), is_active()
    while True:
        chunk, offset = _read(Path(path), offset)
        if chunk:
            yield chunk.decode("utf-8", "replace")
            continue
        if not active:
            return
        if time.monotonic() - checked >= check_seconds:
            # The file is read once more after the last answer, so that nothing written before it is lost.
            active, checked = is_active(), time.monotonic()
            continue
        time.sleep(poll_seconds)


def _read(path: Path, offset: int) -> tuple[bytes, int]:
    """Read from ``offset`` to the last complete line, if there is one; a file that became shorter is read from its start."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < offset:
                offset = 0
            file.seek(offset)
            chunk = file.read(_CHUNK_BYTES)
    except OSError:
        return b"", offset
    if b"\n" in chunk:
        chunk = chunk[: chunk.rindex(b"\n") + 1]
    return chunk, offset + len(chunk)
