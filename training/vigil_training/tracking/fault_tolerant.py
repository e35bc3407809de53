"""Loggers of other systems: a failure to track never ends a run, whose folder has all the numbers without them."""

import logging
from collections.abc import Callable
from typing import Any

from lightning.pytorch.loggers import Logger

log = logging.getLogger("vigil.track")


class FaultTolerantLogger(Logger):
    """A Lightning logger that stops tracking at the first error, with a warning, and lets the run continue."""

    def __init__(self) -> None:
        super().__init__()
        self._failed = False

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

    def _try(self, call: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            call()
        except Exception as error:  # These libraries document no base class of their errors.
            self._failed = True
            log.warning("%s: tracking stopped (%s: %s); metrics.jsonl is still written", self.name, type(error).__name__, error)
