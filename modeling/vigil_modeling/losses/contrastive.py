"""Contrastive losses between two modalities of the same items, with a learned temperature."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid

from vigil_modeling.specs import Contrastive

INITIAL_SCALE = {"siglip": 10.0, "clip": 1 / 0.07}
INITIAL_BIAS = -10.0
MAX_SCALE = 100.0


class ContrastiveLoss(nn.Module):
    """Sum of a contrastive loss over pairs: the two embeddings of an item are a positive pair, those of two items a negative.

    - ``siglip``: a sigmoid for each pair, ``-log sigmoid(z (t x·y + b))`` with z 1 or -1 (Zhai et al. 2023, algorithm 1), summed
      over all pairs of an item; t begins at 10 and b at -10 (section 3.2).
    - ``clip``: cross-entropy of finding the other embedding among those of the batch, the mean of both directions
      (Radford et al. 2021, section 2.3, figure 3); t begins at 1 / 0.07 and is at most 100 (section 2.5).

    Args:
        spec: the kind of loss.

    Attributes:
        log_scale: logarithm of the temperature's inverse t, ``[1]``.
        bias: b, ``[1]``; only of ``siglip``.
    """

    def __init__(self, spec: Contrastive) -> None:
        super().__init__()
        self.kind = spec.loss
        self.log_scale = nn.Parameter(torch.full((1,), math.log(INITIAL_SCALE[spec.loss])))
        self.bias = nn.Parameter(torch.full((1,), INITIAL_BIAS)) if spec.loss == "siglip" else None

    def forward(self, embeddings_MND: Tensor, present_MN: Tensor) -> Tensor:
        """Return the mean loss over the items of every pair of modalities (ImageBind, Girdhar et al. 2023, section 3.1).

        An item is compared with the items that have both modalities of the pair. Without any pair the loss is 0, with gradients
        of 0.

        Args:
            embeddings_MND: float32, of unit length where present.
            present_MN: whether the item has the modality.
        """
        total, pairs = 0 * (embeddings_MND.sum() + sum(parameter.sum() for parameter in self.parameters())), 0
        for left in range(len(embeddings_MND)):
            for right in range(left):
                both_N = present_MN[left] & present_MN[right]
                total = total + self.pair_loss(embeddings_MND[left, both_N], embeddings_MND[right, both_N])
                pairs += int(both_N.sum())
        return total / max(pairs, 1)

    def pair_loss(self, left_ND: Tensor, right_ND: Tensor) -> Tensor:
        """Return the sum over items that have both modalities, ``[N, D]`` each, in the same order."""
        logits_NN = left_ND @ right_ND.T * self.log_scale.clamp(max=math.log(MAX_SCALE)).exp()
        if self.bias is not None:
            sign_NN = 2 * torch.eye(len(left_ND), device=logits_NN.device) - 1
            return -logsigmoid(sign_NN * (logits_NN + self.bias)).sum()
        own_N = torch.arange(len(left_ND), device=logits_NN.device)
        return (cross_entropy(logits_NN, own_N, reduction="sum") + cross_entropy(logits_NN.T, own_N, reduction="sum")) / 2
