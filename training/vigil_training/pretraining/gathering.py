"""Embeddings of all ranks, so that the items of each are negatives of the others."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vigil_training.distributed.rank_group import RankGroup


class _SumOverRanks(torch.autograd.Function):
    """Sum of a tensor of every rank; its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        del ctx
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        del ctx
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def gather_embeddings(own: tuple[Tensor, Tensor], ranks: RankGroup) -> tuple[Tensor, Tensor]:
    """Return the embeddings of all ranks' items, in rank order, through which gradients reach every rank's own.

    Each rank's items are in their place among zeros, and one sum joins them: the only collective, in forward and in backward,
    which every rank runs before any gradient of a weight is there.

    Args:
        own: what this rank's :class:`.ContrastiveModel` returned.
        ranks: the ranks; with one, both are returned as they are.
    """
    if ranks.world.size == 1:
        return own
    embeddings_MND, present_MN = own
    counts = ranks.gather([embeddings_MND.shape[1]])[:, 0].astype(int).tolist()
    before, after = sum(counts[: ranks.world.rank]), sum(counts[ranks.world.rank + 1 :])
    joined_MND = torch.cat([embeddings_MND, present_MN.unsqueeze(2)], dim=2)
    placed_MND = torch.nn.functional.pad(joined_MND, (0, 0, before, after))
    all_MND: Tensor = _SumOverRanks.apply(placed_MND)
    return all_MND[:, :, :-1], all_MND[:, :, -1].detach() > 0.5
