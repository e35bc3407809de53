"""Device of a rank, and the backend and timeout of process groups."""

from datetime import timedelta

import torch

from vigil_data.errors import UserError
from vigil_training.distributed.world import World
from vigil_training.recipe.recipe import Recipe

TIMEOUT_FACTOR = 1.5
"""Process groups wait longer than the watchdog by this factor, so that it reports first where each rank was."""


def choose_device(recipe: Recipe, world: World) -> torch.device:
    """Return the device of this rank.

    Raises:
        UserError: if the recipe asks for GPUs and this machine has too few.
    """
    accelerator, gpus = recipe.training.accelerator, torch.cuda.device_count()
    if accelerator == "cpu" or (accelerator == "auto" and not gpus):
        return torch.device("cpu")
    if gpus <= world.local_rank:
        raise UserError(f"training.accelerator: cuda, but this machine has {gpus} GPUs for {world.local_size} ranks")
    return torch.device("cuda", world.local_rank)


def set_threads(recipe: Recipe, world: World, device: torch.device) -> None:
    """Set torch's CPU threads as in the recipe (default: the ranks of a machine share its cores)."""
    if recipe.training.threads is not None:
        torch.set_num_threads(recipe.training.threads)
    elif device.type == "cpu" and world.local_size > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // world.local_size))


def process_group_backend(device: torch.device) -> str:
    """Return the backend of ``torch.distributed`` for tensors on ``device``."""
    return "nccl" if device.type == "cuda" else "gloo"


def process_group_timeout(seconds: float) -> timedelta:
    """Return the timeout of collectives for the recipe's ``strategy.timeout`` in seconds."""
    return timedelta(seconds=seconds * TIMEOUT_FACTOR)
