"""Loggers of other systems: a failure to track never ends a run, whose folder has all the numbers without them."""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from lightning.pytorch.loggers import Logger

log = logging.getLogger("vigil.track")

MAX_WAITING_CALLS = 1000
"""Calls that wait for a service at most; later ones are dropped and counted."""


class FaultTolerantLogger(Logger):
    """A Lightning logger that stops tracking at the first error, with a warning, and lets the run continue."""

    def __init__(self) -> None:
        super().__init__()
        self._failed = False
        self._dropped = 0
        self._waiting_calls: queue.Queue[Callable[[], object] | None] = queue.Queue(MAX_WAITING_CALLS)
        self._caller: threading.Thread | None = None

    @property
    def version(self) -> str:
        """Version of the logger, which Lightning requires."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the recipe is in the run folder."""

    def finish(self, exit_code: int) -> None:
        """End tracking; the next start of the run continues it.

        Args:
            exit_code: 0 if training has finished.
        """
        raise NotImplementedError

    def _later(self, call: Callable[[], object]) -> None:
        """Make a call in this logger's thread, after those before it: a service that hangs stops no step of the training."""
        if self._caller is None:
            self._caller = threading.Thread(target=self._make_calls, name=self.name, daemon=True)
            self._caller.start()
        try:
            self._waiting_calls.put_nowait(call)
        except queue.Full:
            self._dropped += 1

    def _wait(self, seconds: float) -> bool:
        """End this logger's thread when it has made its calls; return whether it has within some time."""
        if self._caller is not None:
            try:
                self._waiting_calls.put(None, timeout=seconds)
            except queue.Full:
                return False
            self._caller.join(seconds)
            if self._caller.is_alive():
                return False
            self._caller = None
        if self._dropped:
            log.warning("%s: was too slow: %d calls were dropped; metrics.jsonl has all", self.name, self._dropped)
        return True

    def _make_calls(self) -> None:
        while (call := self._waiting_calls.get()) is not None:
            self._try(call)

    def _try(self, call: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            call()
        except Exception as error:  # These libraries document no base class of their errors.
            self._failed = True
            log.warning("%s: tracking stopped (%s: %s); metrics.jsonl is still written", self.name, type(error).__name__, error)
