"""Suppression of standard error for C libraries that print to it directly (mpg123, libtiff)."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()


@contextmanager
def silenced() -> Iterator[None]:
    """Redirect file descriptor 2 to /dev/null; a lock serializes threads, since the descriptor belongs to the process."""
    with _LOCK:
        try:
            saved = os.dup(2)
        except OSError:  # standard error is closed
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
