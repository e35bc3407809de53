"""Session of one rank: its position, device, process groups, preemption and watchdog."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from vigil_data.errors import UserError
from vigil_training.distributed.device import choose_device, process_group_backend, process_group_timeout, set_threads
from vigil_training.distributed.preemption import Preempted, Preemption
from vigil_training.distributed.rank_group import RankGroup
from vigil_training.distributed.watchdog import Watchdog
from vigil_training.distributed.world import World
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.specs import Ranks

LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that a launcher sets, and that Lightning's DeepSpeed strategy overwrites."""


@dataclass(frozen=True)
class Session:
    """Everything that one rank needs besides model and data.

    Attributes:
        world: position of this process.
        device: where it computes.
        ranks: exchange of small values with the other ranks.
        preemption: whether the run is asked to stop.
        watchdog: ends the process when it hangs.
    """

    world: World
    device: torch.device
    ranks: RankGroup
    preemption: Preemption
    watchdog: Watchdog


@contextmanager
def _restored_environment() -> Iterator[None]:
    """Take back what strategies write into the environment, which the next run of this process would take for a launcher's."""
    before = {name: os.environ.get(name) for name in LAUNCH_VARIABLES}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def open_session(recipe: Recipe, world: World, preemption: Preemption) -> Iterator[Session]:
    """Join the other ranks, and leave them at the end of the block.

    Args:
        recipe: its ``training`` and ``strategy`` sections are read.
        world: position of this process.
        preemption: whether the run is asked to stop.

    Raises:
        UserError: if there is no such device, or the number of processes differs from the recipe's.
        Preempted: if a rank does not join in time.
    """
    device = choose_device(recipe, world)
    strategy = recipe.strategy if isinstance(recipe.strategy, Ranks) else None
    if strategy is not None and strategy.world != world.size:
        raise UserError(
            f"strategy: needs {strategy.nodes} nodes of {strategy.devices} ranks, but {world.size} "
            "processes were started; set strategy.nodes and strategy.devices to what the launcher starts"
        )
    set_threads(recipe, world, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = None if strategy is None else process_group_timeout(strategy.timeout)
    if timeout is not None:
        try:
            dist.init_process_group(
                process_group_backend(device),
                init_method=f"tcp://{world.address}:{world.port}",
                rank=world.rank,
                world_size=world.size,
                timeout=timeout,
            )
        except dist.DistError as error:
            reason = str(error).splitlines()[0]
            raise Preempted(f"rank {world.rank} of {world.size} cannot reach rank 0 at {world.address}: {reason}") from error
    try:
        ranks = RankGroup(world, timeout)
        with _restored_environment(), Watchdog(None if strategy is None else strategy.timeout, world.rank) as watchdog:
            yield Session(world, device, ranks, preemption, watchdog)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
