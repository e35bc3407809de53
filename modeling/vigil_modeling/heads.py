"""Heads: one logit for each label from the label's fused vector."""

import torch
from torch import Tensor, nn

from vigil_data.taxonomy import Taxonomy


class Head(nn.Module):
    """Projection shared by a head's labels, then a linear unit for each label.

    Args:
        labels: number of labels.
        width: D of the fused vectors.
        dropout: probability before the linear units.
    """

    label_rows = ("weight_LD", "bias_L")
    """Tensors that have one row for each label of the head."""

    def __init__(self, labels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout))
        self.weight_LD = nn.Parameter(nn.init.trunc_normal_(torch.empty(labels, width), std=width**-0.5))
        self.bias_L = nn.Parameter(torch.zeros(labels))

    def forward(self, hidden_NLD: Tensor) -> Tensor:
        """``[N, L, D]`` to ``[N, L]``."""
        projected_NLD: Tensor = self.project(hidden_NLD)
        return (projected_NLD * self.weight_LD).sum(-1) + self.bias_L


class Heads(nn.Module):
    """All heads of a taxonomy; logits follow its order of labels.

    Args:
        taxonomy: labels of a head are adjacent in its order.
        width: D of the fused vectors.
        dropout: see :class:`Head`.
    """

    def __init__(self, taxonomy: Taxonomy, width: int, dropout: float) -> None:
        super().__init__()
        self.sizes = list(taxonomy.head_sizes.values())
        # A list, since a head's name is data and may clash with an attribute of nn.Module.
        self.heads = nn.ModuleList(Head(size, width, dropout) for size in self.sizes)

    def forward(self, hidden_NLD: Tensor) -> Tensor:
        """``[N, L, D]`` to ``[N, L]``."""
        parts = torch.split(hidden_NLD, self.sizes, dim=1)
        return torch.cat([head(part) for head, part in zip(self.heads, parts, strict=True)], dim=1)
