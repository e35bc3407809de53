"""Being asked to stop: signals set a flag, which the step that is running looks at when it ends."""

import signal
import threading
from types import FrameType
from typing import Any, Self

from vigil_data.errors import Failure

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""SIGTERM comes at preemption, requeueing and the time limit, SIGUSR1 some time before it (``--signal`` of sbatch)."""


class Preempted(Failure):
    """The run was stopped where it can be taken up again; the same command goes on."""

    status = 85


class Preemption:
    """Notes, while it is entered, that a signal asked the process to stop; a handler does nothing else.

    Args:
        to_the_end: ignore these signals when it is left: a process that has done its work is not to die of a late one, and Python
            takes its own handlers away before it is gone.

    Attributes:
        asked: name of the first such signal.
    """

    def __init__(self, to_the_end: bool = False) -> None:
        self._to_the_end = to_the_end
        self.asked: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers.
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self._to_the_end else signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.asked is None:
            self.asked = signal.Signals(number).name
