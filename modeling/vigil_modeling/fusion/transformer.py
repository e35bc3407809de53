"""Transformer over an item's tokens, with a query for each label."""

import torch
from torch import Tensor, nn

from vigil_modeling.fusion.attention import AttentionLayout, Block, build_feedforward
from vigil_modeling.fusion.base import Fusion, softmax_by_item, sum_by_item
from vigil_modeling.specs import TransformerFusion


class Transformer(Fusion):
    """Self-attention over an item's tokens and the prior, then a query for each label (Query2Label, Liu et al. 2021, sec. 3.2).

    Args:
        width: D.
        labels: L.
        spec: layers, heads and feed-forward width.
        dropout: see :class:`Block`.
    """

    label_rows = ("query_LD",)

    def __init__(self, width: int, labels: int, spec: TransformerFusion, dropout: float) -> None:
        super().__init__(width, labels)
        self.heads = spec.heads
        self.blocks = nn.ModuleList(Block(width, spec.heads, spec.feedforward, dropout) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(width)
        self.query_LD = nn.Parameter(nn.init.trunc_normal_(torch.empty(labels, width), std=0.02))
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
        self.feedforward = build_feedforward(width, spec.feedforward, dropout)

    def forward(self, tokens_TD: Tensor, item_T: Tensor, rows_N: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Fusion`; a label's evidence is the mean over attention heads."""
        n_tokens, width = tokens_TD.shape
        tokens_TD, item_T = self.with_prior(tokens_TD, item_T, rows_N)
        layout = AttentionLayout(item_T, rows_N)
        for block in self.blocks:
            tokens_TD = block(tokens_TD, layout)
        key_TD, value_TD = self.key_value(self.norm(tokens_TD)).chunk(2, dim=1)
        query_LHC = self.query(self.query_LD).unflatten(1, (self.heads, -1))
        key_THC, value_THC = key_TD.unflatten(1, (self.heads, -1)), value_TD.unflatten(1, (self.heads, -1))
        scores_TLH = torch.einsum("thc,lhc->tlh", key_THC, query_LHC) * (width // self.heads) ** -0.5
        share_TLH = softmax_by_item(scores_TLH.flatten(1), item_T, rows_N).reshape(-1, self.labels, self.heads)
        weighted_TLHC = share_TLH.unsqueeze(3) * value_THC.float().unsqueeze(1)
        gathered_NLD = sum_by_item(weighted_TLHC.flatten(1), item_T, rows_N).reshape(-1, self.labels, width)
        hidden_NLD = self.query_LD + self.out(gathered_NLD)
        return hidden_NLD + self.feedforward(hidden_NLD), share_TLH[:n_tokens].mean(2)
