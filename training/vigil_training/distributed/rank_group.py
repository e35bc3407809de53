"""Exchange of small values between ranks over gloo, so that all of them make the same decision at the same step."""

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

_LOST_PEER_MESSAGES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Socket closed",
    "Timed out waiting",
    "gloo/transport/tcp",
    "NCCL communicator was aborted",
)


class RankGroup:
    """Process group of all ranks on the CPU, separate from the one that reduces gradients; with one rank nothing is sent.

    Args:
        world: position of this process.
        timeout: how long to wait for the other ranks; unused with one rank.
    """

    def __init__(self, world: World, timeout: timedelta | None) -> None:
        self.world = world
        # Typed Any: new_group returns an int to ranks outside the group, and all ranks are in this one.
        self._group: Any = dist.new_group(backend="gloo", timeout=timeout) if world.size > 1 else None

    def gather(self, values: Sequence[float]) -> NDArray[np.float64]:
        """Gather numbers of every rank, float64 ``[world, n]``; every rank gives the same number of values."""
        own = torch.tensor(list(values), dtype=torch.float64)
        if self._group is None:
            return own.numpy()[None]
        gathered = [torch.empty_like(own) for _ in range(self.world.size)]
        dist.all_gather(gathered, own, group=self._group)
        return torch.stack(gathered).numpy()

    def gather_objects(self, value: T) -> list[T]:
        """Gather one picklable value of every rank, in rank order."""
        if self._group is None:
            return [value]
        gathered: list[Any] = [None] * self.world.size
        dist.all_gather_object(gathered, value, group=self._group)
        return gathered

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        self.gather([0.0])

    def run_on_rank_0(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0 alone, and return its value or raise its exception on every rank.

        Args:
            function: its value or exception must be picklable.
        """
        if self._group is None:
            return function()
        outcome: list[Any] = [None, None]
        if self.world.is_main:
            try:
                outcome[0] = function()
                pickle.dumps(outcome[0])  # If this failed in the broadcast, the other ranks would wait.
            except BaseException as error:  # KeyboardInterrupt too: no rank continues without the others.
                outcome = [None, error if _is_picklable(error) else RuntimeError(str(error))]
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        value, raised = outcome
        if raised is not None:
            raise raised_on_all_ranks(raised)
        return cast("T", value)


def raised_on_all_ranks(error: E) -> E:
    """Mark an exception that every rank raises, so that only rank 0 prints it."""
    if isinstance(error, UserError | Failure):
        error.everywhere = True
    return error


def _is_picklable(error: BaseException) -> bool:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 (its own)
    except Exception:
        return False
    return True


def is_peer_lost(error: BaseException) -> bool:
    """Return whether an exception of ``torch.distributed`` means that another rank can no longer be reached."""
    if not isinstance(error, RuntimeError):  # The base class of torch.distributed's exceptions.
        return False
    return isinstance(error, dist.DistNetworkError | dist.DistBackendError | dist.DistStoreError) or any(
        message in str(error) for message in _LOST_PEER_MESSAGES
    )
