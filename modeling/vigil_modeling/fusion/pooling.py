"""Fusions that pool an item's tokens by weight: their mean, and gated attention for each label."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vigil_modeling.fusion.base import Fusion, softmax_by_item, sum_by_item


class Mean(Fusion):
    """Mean of an item's tokens, the same for every label; the prior for an item without tokens."""

    def forward(self, tokens_TD: Tensor, item_T: Tensor, rows_N: Tensor, sizes: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """See :class:`Fusion`."""
        del sizes
        tokens_TD = tokens_TD.float()
        count_N1 = sum_by_item(tokens_TD.new_ones(tokens_TD.shape[0], 1), item_T, rows_N)
        share_T1 = 1 / count_N1.index_select(0, item_T)
        mean_ND = sum_by_item(tokens_TD * share_T1, item_T, rows_N) + (count_N1 == 0) * self.prior_PD
        return mean_ND.unsqueeze(1).expand(-1, self.labels, -1), share_T1.expand(-1, self.labels)


class Gated(Fusion):
    """Gated attention for each label (Ilse, Tomczak and Welling 2018, equation 9) over an item's tokens and the prior.

    Args:
        width: D.
        labels: L.
        hidden: width of the gate.
        dropout: probability on the gate's output.
    """

    label_rows = ("score.weight",)

    def __init__(self, width: int, labels: int, hidden: int, dropout: float) -> None:
        super().__init__(width, labels)
        self.norm = nn.LayerNorm(width)
        self.tanh = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, labels, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_TD: Tensor, item_T: Tensor, rows_N: Tensor, sizes: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """See :class:`Fusion`."""
        del sizes
        n_tokens, width = tokens_TD.shape
        tokens_TD, item_T = self.with_priors(tokens_TD, item_T, rows_N)
        values_TD = self.norm(tokens_TD)
        scores_TL = self.score(self.dropout(torch.tanh(self.tanh(values_TD)) * torch.sigmoid(self.gate(values_TD))))
        share_TL = softmax_by_item(scores_TL, item_T, rows_N)
        weighted_TLD = share_TL.unsqueeze(2) * values_TD.float().unsqueeze(1)
        hidden_NLD = sum_by_item(weighted_TLD.flatten(1), item_T, rows_N).reshape(-1, self.labels, width)
        return hidden_NLD, share_TL[:n_tokens]
