"""What ranks tell each other beside gradients: small facts, over gloo, so that all of them decide the same at the same step."""

import pickle
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from vigil_data.errors import Failure, UserError
from vigil_training.distributed.world import World

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


class RankGroup:
    """A channel between all ranks; with one rank it answers at once and nothing is sent.

    Args:
        world: the place of this process.
        timeout: seconds after which a rank that does not answer is taken as lost.
    """

    def __init__(self, world: World, timeout: float) -> None:
        self.world = world
        # new_group gives a number in place of a group to ranks that are not in it; all are in this one.
        self._group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout)) if world.size > 1 else None

    def gather(self, values: Sequence[float]) -> NDArray[np.float64]:
        """The numbers of every rank, float64 ``[world, n]``; all ranks give equally many."""
        own = torch.tensor(list(values), dtype=torch.float64)
        if self._group is None:
            return own.numpy()[None]
        gathered = [torch.empty_like(own) for _ in range(self.world.size)]
        dist.all_gather(gathered, own, group=self._group)
        return torch.stack(gathered).numpy()

    def gather_objects(self, value: T) -> list[T]:
        """A plain value of every rank, in their order."""
        if self._group is None:
            return [value]
        gathered: list[Any] = [None] * self.world.size
        dist.all_gather_object(gathered, value, group=self._group)
        return gathered

    def barrier(self) -> None:
        """Return when every rank has come here."""
        self.gather([0.0])

    def run_on_rank_0(self, decide: Callable[[], T]) -> T:
        """What ``decide`` gives on rank 0, on every rank; what it raises there is raised by all.

        Args:
            decide: called on rank 0 alone; its value or exception can be pickled.
        """
        if self._group is None:
            return decide()
        outcome: list[Any] = [None, None]
        if self.world.is_main:
            try:
                outcome[0] = decide()
                pickle.dumps(outcome[0])  # Were it to fail in the broadcast, the others would wait.
            except BaseException as error:  # KeyboardInterrupt too: no rank goes on without the others.
                outcome = [None, error if _can_be_pickled(error) else RuntimeError(str(error))]
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        decided, raised = outcome
        if raised is not None:
            raise raised_on_all_ranks(raised)
        return cast("T", decided)


def raised_on_all_ranks(error: E) -> E:
    """Mark an exception that every rank raises, so that one of them need say it."""
    if isinstance(error, UserError | Failure):
        error.everywhere = True
    return error


def _can_be_pickled(error: BaseException) -> bool:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 (its own)
    except Exception:
        return False
    return True


def is_peer_lost(error: BaseException) -> bool:
    """Whether an exception of torch.distributed says that another rank can no longer be reached."""
    if not isinstance(error, RuntimeError):  # Of which its own exceptions are kinds.
        return False
    text = str(error)
    return isinstance(error, dist.DistNetworkError | dist.DistBackendError | dist.DistStoreError) or any(
        sign in text for sign in _SIGNS_OF_LOSS
    )


_SIGNS_OF_LOSS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Socket closed",
    "Timed out waiting",
    "gloo/transport/tcp",
    "NCCL communicator was aborted",
)
