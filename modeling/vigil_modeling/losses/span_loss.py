"""Loss of the span head: which tokens of a text are in a span of a label."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def span_loss(logits_STK: Tensor, targets_STK: Tensor, item_S: Tensor) -> Tensor:
    """Return the binary cross-entropy of tokens: the mean over each item's known tokens, summed over items and labels.

    So an item weighs the same however long it is. It is zero with zero gradients if no token is known.

    Args:
        logits_STK: log-odds, NaN for tokens that were not read.
        targets_STK: 1 in a span, 0 outside, NaN for unknown.
        item_S: int64, the item of each segment.
    """
    known_STK = ~(targets_STK.isnan() | logits_STK.isnan())
    losses_M = binary_cross_entropy_with_logits(logits_STK[known_STK].float(), targets_STK[known_STK].float(), reduction="none")
    segment_M, _, label_M = known_STK.nonzero(as_tuple=True)
    labels = logits_STK.shape[2]
    _, cell_M = torch.unique(item_S[segment_M] * labels + label_M, return_inverse=True)
    tokens_M = torch.bincount(cell_M)[cell_M]
    return (losses_M / tokens_M).sum()
