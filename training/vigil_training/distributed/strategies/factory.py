"""From a recipe's strategy to Lightning's, with the precision that goes with it."""

from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.strategies import Strategy

from vigil_data.errors import UserError
from vigil_training.distributed.strategies.cluster_environment import WorldEnvironment
from vigil_training.distributed.strategies.ddp import CheckpointedDDP, CheckpointedSingleDevice
from vigil_training.distributed.world import World
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.specs import DeepSpeed, DistributedDataParallel

PROCESS_GROUP_MARGIN = 1.5
"""Collectives give up after the watchdog, which then has said where every rank was."""


def choose_device(recipe: Recipe, world: World) -> torch.device:
    """The device of this rank.

    Raises:
        UserError: if the recipe asks for GPUs and this machine has too few.
    """
    wanted, there = recipe.training.accelerator, torch.cuda.device_count()
    if wanted == "cpu" or (wanted == "auto" and not there):
        return torch.device("cpu")
    if there <= world.local_rank:
        raise UserError(f"training.accelerator: cuda, but this machine has {there} GPUs for {world.local_size} ranks")
    return torch.device("cuda", world.local_rank)


def build_strategy(recipe: Recipe, world: World, device: torch.device) -> Strategy:
    """Build the strategy of a recipe; the process group of several ranks must have been made.

    Raises:
        UserError: a library is not installed or something the strategy needs is not to be had.
    """
    spec, environment = recipe.strategy, WorldEnvironment(world)
    strategy: Any
    if isinstance(spec, DistributedDataParallel):
        strategy = CheckpointedDDP(
            parallel_devices=[device] * world.local_size,
            cluster_environment=environment,
            process_group_backend=backend(device),
            timeout=timedelta(seconds=spec.timeout * PROCESS_GROUP_MARGIN),
            gradient_as_bucket_view=True,
        )
    elif isinstance(spec, DeepSpeed):
        from vigil_training.distributed.strategies.deepspeed import CheckpointedDeepSpeed

        strategy = CheckpointedDeepSpeed.of(spec, recipe, world, device, environment)
    else:
        strategy = CheckpointedSingleDevice(device)
    return strategy  # type: ignore[no-any-return]


def build_plugins(recipe: Recipe, world: World, device: torch.device) -> list[Any]:
    """What the trainer is given beside the strategy, where that does not bring it itself.

    Weights stay in float32; with bf16, forward passes compute in it (autocast).
    """
    if isinstance(recipe.strategy, DeepSpeed):
        from vigil_training.distributed.strategies.deepspeed import zero_precision

        return [zero_precision(recipe)]
    precision = MixedPrecision("bf16-mixed", device.type) if recipe.training.precision == "bf16" else Precision()
    # Without an environment Lightning would look for one.
    return [precision] if isinstance(recipe.strategy, DistributedDataParallel) else [precision, WorldEnvironment(world)]


def backend(device: torch.device) -> str:
    """Of torch.distributed, for the tensors on ``device``."""
    return "nccl" if device.type == "cuda" else "gloo"
