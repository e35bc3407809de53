"""Group DRO: the loss of the worst groups, so that a model does not rely on what holds in most items alone."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vigil_modeling.losses.masked_loss import MaskedLoss


class GroupDRO:
    """Mean losses of groups, weighted by weights that grow with each group's loss (Sagawa et al. 2020, section 4.1, algorithm 1).

    At each batch the weight of a group is multiplied by ``exp(step_size * mean loss of its items)`` and all are divided by their
    sum; the loss is the weighted sum of the groups' mean losses. A group that is not in the batch keeps its weight before the
    division. The mean of a group is over its known targets on all ranks, so that every rank has the same weights.

    Args:
        loss: sum over known targets.
        step_size: eta of the paper.
        groups: number of groups.
        gather: gives the numbers of every rank, float64 ``[world, n]``.

    Attributes:
        weights_G: weight of each group, float64 ``[G]``, with sum 1; state that a resumed run needs.
        losses_G: mean loss of each group in the last batch, NaN for a group that is not in it.
    """

    def __init__(
        self, loss: MaskedLoss, step_size: float, groups: int, gather: Callable[[Sequence[float]], NDArray[np.float64]]
    ) -> None:
        self._loss = loss
        self._step_size = step_size
        self._gather = gather
        self.weights_G = np.full(groups, 1 / groups)
        self.losses_G = np.full(groups, np.nan)

    def __call__(self, raw_NL: Tensor, targets_NL: Tensor, group_N: Tensor) -> Tensor:
        """Return the loss of a batch and update the weights; every rank calls it, with its own items.

        The mean over ranks of what they return is the loss of the batch.

        Args:
            raw_NL: outputs of the heads.
            targets_NL: values in [0, 1], NaN for unknown.
            group_N: group of each item, int64.
        """
        count = len(self.weights_G)
        present = torch.unique(group_N).tolist()
        totals = {group: self._loss(raw_NL[group_N == group], targets_NL[group_N == group]) for group in present}
        known = {group: float(self._loss.weight(targets_NL[group_N == group])) for group in present}
        own = [float(totals[group].detach()) if group in totals else 0.0 for group in range(count)]
        own += [known.get(group, 0.0) for group in range(count)]
        gathered = self._gather(own)
        total_G, known_G = gathered[:, :count].sum(axis=0), gathered[:, count:].sum(axis=0)
        self.losses_G = np.divide(total_G, known_G, out=np.full(count, np.nan), where=known_G > 0)
        if np.isfinite(total_G).all():  # otherwise the step is skipped, and the weights must stay finite
            self.weights_G = updated_weights(self.weights_G, self.losses_G, self._step_size)
        loss = raw_NL.sum() * 0.0
        for group, total in totals.items():
            if known_G[group] > 0:
                loss = loss + float(len(gathered) * self.weights_G[group] / known_G[group]) * total
        return loss


def updated_weights(weights_G: NDArray[np.float64], losses_G: NDArray[np.float64], step_size: float) -> NDArray[np.float64]:
    """Return the next weights of groups, ``[G]`` with sum 1.

    Args:
        weights_G: the current weights.
        losses_G: mean loss of each group, NaN for a group without one, whose factor is 1.
        step_size: eta of the paper.
    """
    exponents_G = step_size * np.nan_to_num(losses_G)
    raised_G: NDArray[np.float64] = weights_G * np.exp(exponents_G - exponents_G.max())
    return np.asarray(raised_G / raised_G.sum())
