"""Multimodal bottleneck transformer: modalities exchange information through a few tokens of each item."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vigil_modeling.fusion.attention import AttentionLayout, Block, LabelQueries
from vigil_modeling.fusion.base import Fusion, has_tokens
from vigil_modeling.specs import BottleneckFusion


class Bottleneck(Fusion):
    """Attention within each modality and bottleneck tokens (MBT, Nagrani et al. 2021, section 3.3), then a query for each label.

    Every modality has weights of its own in each layer. A modality's tokens attend to each other and to the item's bottleneck
    tokens, and update a copy of these; the copies of the modalities that the item has are averaged (equations 8 and 9). Below
    ``spec.fusion_layer`` the bottleneck tokens stay what was learned, so that nothing is exchanged; the paper leaves them out
    there. They are the learned tokens of the base class: an item without tokens keeps them unchanged.

    Args:
        width: D.
        labels: L.
        spec: layers, bottleneck tokens, heads and feed-forward width.
        dropout: see :class:`~vigil_modeling.fusion.attention.Block`.
        modalities: names of the modalities.
    """

    def __init__(self, width: int, labels: int, spec: BottleneckFusion, dropout: float, modalities: Sequence[str]) -> None:
        super().__init__(width, labels, priors=spec.bottlenecks)
        self.fusion_layer = spec.fusion_layer
        layers = [{m: Block(width, spec.heads, spec.feedforward, dropout) for m in modalities} for _ in range(spec.layers)]
        self.layers = nn.ModuleList(nn.ModuleDict(blocks) for blocks in layers)
        self.queries = LabelQueries(width, labels, spec.heads, spec.feedforward, dropout)

    def forward(self, tokens_TD: Tensor, item_T: Tensor, rows_N: Tensor, sizes: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """See :class:`~vigil_modeling.fusion.base.Fusion`."""
        n_tokens = tokens_TD.shape[0]
        tokens, items = list(torch.split(tokens_TD, list(sizes))), torch.split(item_T, list(sizes))
        shared_QD, row_Q = self.priors(tokens_TD, rows_N)
        layouts = [AttentionLayout(torch.cat([item_S, row_Q]), rows_N) for item_S in items]
        present_MN1 = torch.stack([has_tokens(item_S, rows_N) for item_S in items]).to(tokens_TD.dtype)
        share_MN1 = present_MN1 / present_MN1.sum(0).clamp(min=1)
        # An item without tokens keeps its bottleneck tokens.
        kept_Q1, *share_Q1 = torch.cat([1 - share_MN1.sum(0, keepdim=True), share_MN1]).index_select(1, row_Q).unbind(0)
        for depth, blocks in enumerate(self.layers):
            assert isinstance(blocks, nn.ModuleDict)
            mixed_QD = kept_Q1 * shared_QD
            for place, (block, part_SD, layout) in enumerate(zip(blocks.values(), tokens, layouts, strict=True)):
                both_SD = block(torch.cat([part_SD, shared_QD]), layout)
                tokens[place] = both_SD[: part_SD.shape[0]]
                mixed_QD = mixed_QD + share_Q1[place] * both_SD[part_SD.shape[0] :]
            if depth >= self.fusion_layer:
                shared_QD = mixed_QD
        hidden_NLD, share_TL = self.queries(torch.cat([*tokens, shared_QD]), torch.cat([item_T, row_Q]), rows_N)
        return hidden_NLD, share_TL[:n_tokens]
