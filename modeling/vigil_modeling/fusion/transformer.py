"""Transformer over an item's tokens of all modalities."""

from collections.abc import Sequence

from torch import Tensor, nn

from vigil_modeling.fusion.attention import AttentionLayout, Block, LabelQueries
from vigil_modeling.fusion.base import Fusion
from vigil_modeling.specs import TransformerFusion


class Transformer(Fusion):
    """Self-attention over an item's tokens and the prior, then a query for each label.

    Args:
        width: D.
        labels: L.
        spec: layers, heads and feed-forward width.
        dropout: see :class:`~vigil_modeling.fusion.attention.Block`.
    """

    def __init__(self, width: int, labels: int, spec: TransformerFusion, dropout: float) -> None:
        super().__init__(width, labels)
        self.blocks = nn.ModuleList(Block(width, spec.heads, spec.feedforward, dropout) for _ in range(spec.layers))
        self.queries = LabelQueries(width, labels, spec.heads, spec.feedforward, dropout)

    def forward(self, tokens_TD: Tensor, item_T: Tensor, rows_N: Tensor, sizes: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """See :class:`~vigil_modeling.fusion.base.Fusion`."""
        del sizes
        n_tokens = tokens_TD.shape[0]
        tokens_TD, item_T = self.with_priors(tokens_TD, item_T, rows_N)
        layout = AttentionLayout(item_T, rows_N)
        for block in self.blocks:
            tokens_TD = block(tokens_TD, layout)
        hidden_NLD, share_TL = self.queries(tokens_TD, item_T, rows_N)
        return hidden_NLD, share_TL[:n_tokens]
