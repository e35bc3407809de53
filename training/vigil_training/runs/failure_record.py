"""``failure.json``: why a start of a run failed, so that a batch script can tell a failure from a lost machine."""

import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vigil_data.errors import Failure, UserError
from vigil_data.filesystem import write_json
from vigil_training.distributed.preemption import Preempted
from vigil_training.distributed.rank_group import is_peer_lost
from vigil_training.distributed.world import World
from vigil_training.runs.run import Run

log = logging.getLogger("vigil.train")


@contextmanager
def record_failure(run: Run, world: World, token: str) -> Iterator[None]:
    """Write ``failure.json`` if the block fails; a preemption and the loss of another rank are not failures.

    Args:
        run: the run.
        world: the place of this process.
        token: token of this start. A start that was superseded by another writes nothing: the folder is the other's.

    Raises:
        Preempted: if another rank was lost.
    """
    try:
        yield
    except (Preempted, KeyboardInterrupt):
        raise
    except Exception as error:
        if world.size > 1 and is_peer_lost(error):
            raise Preempted(f"rank {world.rank} lost another rank: {str(error).splitlines()[0].split('. ')[0]}") from error
        log.error("stopped: %s", error)
        if run.attempt.read_text() == token and not run.failure.exists():  # The first rank to fail is the one to report.
            status = 2 if isinstance(error, UserError) else 1
            facts = {"rank": world.rank, "host": platform.node(), "status": status, "lines": str(error).splitlines()}
            with suppress(Failure):  # If the disk is full, the error above is the one to raise.
                write_json(run.failure, facts)
        raise
