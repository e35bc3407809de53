"""What a process of a run has beside the model: its place, its device, the channel to the others, and what may end it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from vigil_data.errors import UserError
from vigil_training.distributed.preemption import Preempted, Preemption
from vigil_training.distributed.rank_group import RankGroup
from vigil_training.distributed.strategies.factory import PROCESS_GROUP_MARGIN, backend, choose_device
from vigil_training.distributed.watchdog import Watchdog
from vigil_training.distributed.world import World
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.specs import Ranks


@dataclass(frozen=True)
class Session:
    """The surroundings of one rank while it trains.

    Attributes:
        world: the place of this process.
        device: what it computes on.
        ranks: the channel to the other ranks.
        preemption: what asks the run to stop.
        watchdog: ends the process when nothing goes on any more.
    """

    world: World
    device: torch.device
    ranks: RankGroup
    preemption: Preemption
    watchdog: Watchdog


@contextmanager
def open_session(recipe: Recipe, world: World, preemption: Preemption) -> Iterator[Session]:
    """Join the other ranks; leave them at the end.

    Args:
        recipe: says which device and how long a rank may be silent.
        world: the place of this process.
        preemption: what asks the run to stop.

    Raises:
        UserError: if there is no such device, or other ranks were started than the recipe says.
        Preempted: if a rank does not come.
    """
    device = choose_device(recipe, world)
    timeout = recipe.strategy.timeout if isinstance(recipe.strategy, Ranks) else None
    if isinstance(recipe.strategy, Ranks) and recipe.strategy.world != world.size:
        raise UserError(
            f"strategy: {recipe.strategy.nodes} nodes of {recipe.strategy.devices} ranks were asked for, but {world.size} "
            "processes were started; set strategy.nodes and strategy.devices to what the launcher starts"
        )
    _choose_threads(recipe, world, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if timeout is not None:
        try:
            dist.init_process_group(
                backend(device),
                init_method=f"tcp://{world.address}:{world.port}",
                rank=world.rank,
                world_size=world.size,
                timeout=timedelta(seconds=timeout * PROCESS_GROUP_MARGIN),
            )
        except dist.DistError as error:
            reason = str(error).splitlines()[0]
            raise Preempted(f"rank {world.rank} of {world.size} does not find the others at {world.address}: {reason}") from error
    try:
        ranks = RankGroup(world, (timeout or 0.0) * PROCESS_GROUP_MARGIN)
        with Watchdog(timeout, world.rank) as watchdog:
            yield Session(world, device, ranks, preemption, watchdog)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _choose_threads(recipe: Recipe, world: World, device: torch.device) -> None:
    """As many as the recipe says; else the ranks of a machine that compute on its cores share them out."""
    if recipe.training.threads is not None:
        torch.set_num_threads(recipe.training.threads)
    elif device.type == "cpu" and world.local_size > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // world.local_size))
