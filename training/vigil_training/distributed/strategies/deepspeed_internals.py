"""Private attributes of DeepSpeed 0.19: the only module that uses them.

DeepSpeed has no public way to save and load the state of its ZeRO optimizers piece by piece: its own checkpoints are pickles for
one number of ranks.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def disable_op_builders() -> None:
    """Report all compiled operators as incompatible, for the CPU.

    Otherwise DeepSpeed compiles an all-reduce over shared memory on first use, which takes a minute and gloo replaces; even
    asking which operators are compatible runs the compiler.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}


def is_stage_3(optimizer: Any) -> bool:
    """Return whether a ZeRO optimizer partitions the weights too."""
    return hasattr(optimizer, "fp32_partitioned_groups_flat")


def gradient_norm(optimizer: Any) -> Tensor:
    """Return the norm of the last gradient before clipping, over weights and ranks; infinite if the step was skipped."""
    return torch.as_tensor(optimizer._global_grad_norm, dtype=torch.float32)


def shard_gradients(optimizer: Any) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Yield the parameters of this rank's shard, each with its part of the gradient, between backward and step.

    Nothing is yielded if the optimizer is offloaded, as the gradients are then in its own buffers.
    """
    groups = optimizer.fp16_groups if is_stage_3(optimizer) else optimizer.params_in_partition
    for index, parameters in enumerate(groups):
        gradients = optimizer.averaged_gradients.get(index) or ()
        yield from zip(parameters, (g for g in gradients if not getattr(g, "_zero_padding", False)), strict=False)


@torch.no_grad()
def update_compute_weights(optimizer: Any) -> None:
    """Copy the float32 weights that are stepped into the weights that layers compute with."""
    if not is_stage_3(optimizer):
        optimizer._hp_optimizer_states_linked = False
        if all(flat in optimizer.optimizer.state for flat in optimizer.single_partition_of_fp32_groups):
            optimizer._lazy_init_hp_params_optimizer_state()
        optimizer.update_lp_params()
        return
    optimizer._partition_all_parameters()
    for index in range(len(optimizer.fp16_groups)):
        if not optimizer._swappable_optimizer_subgroup(index):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
    if optimizer.persistent_parameters:
        optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


@contextmanager
def swapped_in(optimizer: Any, index: int, changed: bool = False) -> Iterator[Callable[[Tensor], Tensor]]:
    """Load the state of a sub-group into memory if it is offloaded to NVMe.

    Args:
        optimizer: DeepSpeed's ZeRO optimizer.
        index: index of the sub-group.
        changed: write the state back afterwards.

    Yields:
        A function that makes a tensor of the state outlive the block.
    """
    if not (is_stage_3(optimizer) and optimizer._swappable_optimizer_subgroup(index)):
        yield lambda tensor: tensor
        return
    optimizer._optimizer_states_and_gradient_swap_in(index)
    yield Tensor.clone
    if changed:
        optimizer._reassign_or_swap_out_partitioned_parameters(index)
        optimizer._optimizer_states_and_gradient_swap_out(index)
    else:
        optimizer._release_swap_buffers(index)
