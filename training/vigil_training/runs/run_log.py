"""Logging of a run: to standard error and to the run folder."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from vigil_training.distributed.world import World
from vigil_training.runs.run import Run


class _StandardError(logging.StreamHandler[TextIO]):
    """A handler that looks up ``sys.stderr`` at each line, since a progress bar replaces it to print lines above itself."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None: ...


@contextmanager
def log_to_run(run: Run, world: World) -> Iterator[None]:
    """Log to standard error and to a file of the run while the block runs.

    Rank 0 shows everything and writes ``train.log``; other ranks show warnings and write ``ranks/rank-N.log``.
    """
    logger = logging.getLogger("vigil")
    path = run.log if world.is_main else run.rank_log(world.rank)
    path.parent.mkdir(exist_ok=True)
    handlers: list[logging.Handler] = [logging.FileHandler(path), _StandardError()]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    handlers[1].setFormatter(logging.Formatter("%(message)s" if world.is_main else f"rank {world.rank}: %(message)s"))
    handlers[1].setLevel(logging.INFO if world.is_main else logging.WARNING)
    handlers[1].addFilter(lambda record: record.levelno < logging.ERROR)  # The command itself prints why it failed.
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(level)
        logger.propagate = propagate
