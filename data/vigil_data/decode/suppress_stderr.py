"""Quiet for C libraries that print their remarks on damaged files to standard error themselves (mpg123, libtiff)."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_TURN = threading.RLock()


@contextmanager
def silenced() -> Iterator[None]:
    """Send file descriptor 2 nowhere. Threads take turns, for the descriptor is the whole process's."""
    with _TURN:
        try:
            saved = os.dup(2)
        except OSError:  # there is no standard error to silence
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(nowhere)
