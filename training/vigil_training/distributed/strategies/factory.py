"""Lightning's strategy and precision plugin for a recipe."""

from typing import Any

import torch
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.strategies import Strategy

from vigil_training.distributed.device import process_group_backend, process_group_timeout
from vigil_training.distributed.strategies.cluster_environment import WorldEnvironment
from vigil_training.distributed.strategies.ddp import CheckpointedDDP, CheckpointedSingleDevice
from vigil_training.distributed.strategies.deepspeed import CheckpointedDeepSpeed, Float32Precision
from vigil_training.distributed.strategies.fsdp2 import CheckpointedFullyShardedStrategy
from vigil_training.distributed.world import World
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.specs import DeepSpeed, DistributedDataParallel, FullySharded


def build_strategy(recipe: Recipe, world: World, device: torch.device) -> Strategy:
    """Build the strategy of a recipe; with several ranks, after torch's default process group.

    Raises:
        UserError: if a library or something else that the strategy needs is not installed.
    """
    spec, environment = recipe.strategy, WorldEnvironment(world)
    strategy: Any
    if isinstance(spec, DistributedDataParallel):
        strategy = CheckpointedDDP(
            parallel_devices=[device] * world.local_size,
            cluster_environment=environment,
            process_group_backend=process_group_backend(device),
            timeout=process_group_timeout(spec.timeout),
            gradient_as_bucket_view=True,
        )
    elif isinstance(spec, DeepSpeed):
        strategy = CheckpointedDeepSpeed.from_recipe(spec, recipe, world, device, environment)
    elif isinstance(spec, FullySharded):
        strategy = CheckpointedFullyShardedStrategy.from_recipe(spec, world, device, environment)
    else:
        strategy = CheckpointedSingleDevice(device)
    return strategy  # type: ignore[no-any-return]


def build_plugins(recipe: Recipe, world: World, device: torch.device) -> list[Any]:
    """Build the trainer's plugins: precision, and the cluster environment if the strategy does not bring it.

    Weights stay in float32; with bf16, forward passes run under autocast.
    """
    if isinstance(recipe.strategy, DeepSpeed):
        return [Float32Precision()]
    precision = MixedPrecision("bf16-mixed", device.type) if recipe.training.precision == "bf16" else Precision()
    # Without an environment Lightning would detect one itself.
    brings_environment = isinstance(recipe.strategy, DistributedDataParallel | FullySharded)
    return [precision] if brings_environment else [precision, WorldEnvironment(world)]
