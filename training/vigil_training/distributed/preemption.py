"""Preemption: signals set a flag, which training checks at the end of each step."""

import signal
import threading
from types import FrameType
from typing import Any, Self

from vigil_data.errors import Failure

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""SIGTERM comes at preemption, requeueing and the time limit, SIGUSR1 some time before it (``--signal`` of sbatch)."""

REQUEUE_STATUS = 85
"""Exit status of a run that was stopped through no fault of its own and can be resumed."""


class Preempted(Failure):
    """The run was stopped and can be resumed with the same command."""

    status = REQUEUE_STATUS


class Preemption:
    """Context manager that records the first preemption signal; its handler does nothing else.

    Args:
        ignore_on_exit: ignore these signals on exit, so that a late one does not kill a process that has finished: Python
            removes
            its own handlers before the process ends.

    Attributes:
        asked: name of the first signal, such as ``SIGTERM``; ``None`` if none came.
    """

    def __init__(self, ignore_on_exit: bool = False) -> None:
        self._ignore_on_exit = ignore_on_exit
        self.asked: str | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers.
            self._former = {number: signal.signal(number, self._record) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, signal.SIG_IGN if self._ignore_on_exit else signal.SIG_DFL if handler is None else handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.asked is None:
            self.asked = signal.Signals(number).name
