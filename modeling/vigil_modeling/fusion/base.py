"""Base class of the fusions, and sums and softmax over the packed tokens of each item."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn


def sum_by_item(values_TC: Tensor, item_T: Tensor, rows_N: Tensor) -> Tensor:
    """Sum the values of each item: ``[T, C]`` to ``[N, C]``."""
    return values_TC.new_zeros(rows_N.shape[0], values_TC.shape[1]).index_add(0, item_T, values_TC)


def has_tokens(item_T: Tensor, rows_N: Tensor) -> Tensor:
    """Return which items have a token, bool ``[N, 1]``."""
    return sum_by_item(torch.ones_like(item_T, dtype=torch.float32).unsqueeze(1), item_T, rows_N) > 0


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
    """Base class of the fusions of tokens.

    ``forward(tokens_TD, item_T, rows_N, sizes)`` returns ``hidden_NLD``, one vector for each item and label, and ``evidence_TL``,
    the attention weight of each token for each label: non-negative, with a sum of at most 1 over an item's tokens. The remainder
    is the weight of the learned tokens ``prior_PD``, the only input of an item without tokens. ``sizes`` has the number of tokens
    of each modality of the model, 0 for an absent one; tokens of a modality are adjacent, in any order. Fusions that treat all
    modalities alike ignore it.

    Args:
        width: D.
        labels: L.
        priors: P, learned tokens of each item.

    Attributes:
        label_rows: names of the tensors that have one row for each label; the other tensors do not depend on the labels.
    """

    label_rows: ClassVar[tuple[str, ...]] = ()

    def __init__(self, width: int, labels: int, priors: int = 1) -> None:
        super().__init__()
        self.labels = labels
        self.prior_PD = nn.Parameter(nn.init.trunc_normal_(torch.empty(priors, width), std=0.02))

    def priors(self, tokens_TD: Tensor, rows_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the learned tokens of every item, ``[N * P, D]`` in the dtype of the tokens, and their items' rows."""
        prior_PD = self.prior_PD.to(tokens_TD.dtype)
        shape = (rows_N.shape[0], *prior_PD.shape)
        return prior_PD.expand(shape).flatten(0, 1), rows_N.unsqueeze(1).expand(shape[:2]).flatten()

    def with_priors(self, tokens_TD: Tensor, item_T: Tensor, rows_N: Tensor) -> tuple[Tensor, Tensor]:
        """Add the learned tokens of each item, last: ``[T + N * P, D]`` and ``[T + N * P]``."""
        prior_QD, row_Q = self.priors(tokens_TD, rows_N)
        return torch.cat([tokens_TD, prior_QD]), torch.cat([item_T, row_Q])

    def forward(self, tokens_TD: Tensor, item_T: Tensor, rows_N: Tensor, sizes: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Fuse the tokens of each item."""
        raise NotImplementedError
