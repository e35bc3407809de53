"""A log as it grows."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_PIECE = 1 << 16


def follow(path: Path, alive: Callable[[], bool], pause: float = 0.5, ask_every: float = 10.0) -> Iterator[str]:
    """The text of a file, and what is written to it until its writer is gone.

    Args:
        path: the file; it may not exist yet.
        alive: whether more may come; asked every ``ask_every`` seconds, since the question costs Slurm something.
        pause: seconds from one look at the file to the next.
        ask_every: seconds from one question to the next.

    Yields:
        Text, in the pieces in which it was found.
    """
    place, asked, more = 0, time.monotonic(), alive()
    while True:
        piece, place = _read(path, place)
        if piece:
            yield piece.decode("utf-8", "replace")
            continue
        if not more:
            return
        if time.monotonic() - asked >= ask_every:
            # The file is read once more after the last answer, so that nothing written in between is lost.
            more, asked = alive(), time.monotonic()
            continue
        time.sleep(pause)


def _read(path: Path, place: int) -> tuple[bytes, int]:
    """What follows ``place``, up to the last whole line if there is one; a file that became shorter is read anew."""
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size < place:
                place = 0
            stream.seek(place)
            piece = stream.read(_PIECE)
    except OSError:
        return b"", place
    if b"\n" in piece:
        piece = piece[: piece.rindex(b"\n") + 1]
    return piece, place + len(piece)
