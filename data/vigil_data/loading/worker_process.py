"""The process of a worker: what it does with signals, with the end of the training process, and with freed memory."""

import ctypes
import multiprocessing
import os
import signal
from threading import Thread
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Signals with which a scheduler stops a job."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
KEPT_BYTES, LARGEST_BYTES = 256 << 20, 32 << 20
"""Freed memory that a worker keeps, and the size up to which freed allocations are kept."""


def keep_freed_memory() -> None:
    """Let this process use freed memory again instead of returning it to the kernel after each read; only glibc can.

    Reading a batch allocates and frees its bytes several times. By default glibc returns them each time, and the kernel clears
    new pages for the next, which took more than half of the time of reading.
    """
    if hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        library.mallopt(_MMAP_THRESHOLD, LARGEST_BYTES)


def start_worker(worker: int) -> None:
    """Set up a worker: its memory, and its life, which is tied to the training process.

    A scheduler that stops a job signals all of its processes; the training process needs its workers until it has reacted. If it
    is killed, its workers end: torch watches the process that forked the worker, which is the fork server, and that lives as long
    as its workers.
    """
    del worker
    keep_freed_memory()
    parent = multiprocessing.parent_process()
    if parent is not None:
        # Blocked before other threads exist, which inherit the mask, so that only _exit_on_sigterm_from receives the signals.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        Thread(target=_exit_on_sigterm_from, args=(parent.pid,), daemon=True).start()
        Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_on_sigterm_from(parent: int) -> None:
    """Exit on SIGTERM from the training process, which ends idle workers that way; ignore other senders."""
    while True:
        got = signal.sigwaitinfo(SIGNALS)
        if got.si_signo == signal.SIGTERM and got.si_pid == parent:
            os._exit(0)


def _exit_after(parent: Any) -> None:
    parent.join()
    os._exit(1)
