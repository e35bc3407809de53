"""Base class of the fusions, and sums and softmax over the packed tokens of each item."""

from typing import ClassVar

import torch
from torch import Tensor, nn


def sum_by_item(values_TC: Tensor, item_T: Tensor, rows_N: Tensor) -> Tensor:
    """Sum the values of each item: ``[T, C]`` to ``[N, C]``."""
    return values_TC.new_zeros(rows_N.shape[0], values_TC.shape[1]).index_add(0, item_T, values_TC)


def softmax_by_item(scores_TC: Tensor, item_T: Tensor, rows_N: Tensor) -> Tensor:
    """Softmax of each column over each item's tokens: ``[T, C]`` to ``[T, C]``, in float32."""
    scores_TC = scores_TC.float()
    index_TC = item_T.unsqueeze(1).expand_as(scores_TC)
    lowest_NC = scores_TC.new_full((rows_N.shape[0], scores_TC.shape[1]), torch.finfo(torch.float32).min)
    # The largest score only keeps exp() in range: the softmax does not depend on it, so neither does the gradient.
    largest_NC = lowest_NC.scatter_reduce(0, index_TC, scores_TC.detach(), "amax")
    exp_TC = torch.exp(scores_TC - largest_NC.index_select(0, item_T))
    return exp_TC / sum_by_item(exp_TC, item_T, rows_N).index_select(0, item_T)


class Fusion(nn.Module):
    """Base class of the fusions.

    ``forward(tokens_TD, item_T, rows_N)`` returns ``hidden_NLD``, one vector for each item and label, and ``evidence_TL``, the
    attention weight of each token for each label: non-negative, with a sum of at most 1 over an item's tokens. The remainder is
    the weight of the learned prior ``prior_D``, the only input of an item without tokens.

    Args:
        width: D.
        labels: L.

    Attributes:
        label_rows: names of the tensors that have one row for each label, whose other tensors do not depend on the labels.
    """

    label_rows: ClassVar[tuple[str, ...]] = ()

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.labels = labels
        self.prior_D = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))

    def with_prior(self, tokens_TD: Tensor, item_T: Tensor, rows_N: Tensor) -> tuple[Tensor, Tensor]:
        """Add the prior as one more token of each item: ``[T + N, D]`` and ``[T + N]``, the priors last."""
        prior_ND = self.prior_D.to(tokens_TD.dtype).expand(rows_N.shape[0], -1)
        return torch.cat([tokens_TD, prior_ND]), torch.cat([item_T, rows_N])
