"""Attention among the packed tokens of each item, and from a query of each label to them."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from vigil_modeling.fusion.base import softmax_by_item, sum_by_item


class AttentionLayout:
    """Where attention finds the tokens of an item: in a mask over all tokens, or in a padded row for each item.

    The mask costs ``T * T`` for each head, the rows ``N * K * K`` with K tokens in the largest item; the cheaper one is taken.
    An exported graph always has the mask, since K depends on the data, and so has a plan, whose tensors have no values.

    Args:
        item_T: row of each token's item.
        rows_N: ``arange(N)``.
    """

    def __init__(self, item_T: Tensor, rows_N: Tensor) -> None:
        self.place_T: Tensor | None = None
        exporting = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if not exporting and type(item_T) is Tensor and len(item_T):
            count_N = torch.bincount(item_T, minlength=len(rows_N))
            longest = int(count_N.max())
            if len(rows_N) * longest * longest < len(item_T) ** 2:
                order_T = torch.argsort(item_T, stable=True)
                rank_T = torch.arange(len(item_T), device=item_T.device) - (count_N.cumsum(0) - count_N)[item_T[order_T]]
                self.place_T = torch.empty_like(item_T).index_copy(0, order_T, item_T[order_T] * longest + rank_T)
                self.shape = (len(rows_N), longest)
                self.mask = (torch.arange(longest, device=item_T.device) < count_N[:, None])[:, None, None]
                return
        self.mask = (item_T.unsqueeze(1) == item_T.unsqueeze(0))[None, None]

    def split(self, tokens_TD: Tensor, heads: int) -> Tensor:
        """``[T, D]`` to ``[B, heads, K, C]``: B rows of K tokens, a row for each item or one row of all tokens."""
        width = tokens_TD.shape[1]
        if self.place_T is None:
            rows_BKD = tokens_TD.unsqueeze(0)
        else:
            items, longest = self.shape
            padded = tokens_TD.new_zeros(items * longest, width).index_copy(0, self.place_T, tokens_TD)
            rows_BKD = padded.view(items, longest, width)
        return rows_BKD.view(*rows_BKD.shape[:2], heads, width // heads).transpose(1, 2)

    def join(self, mixed_BHKC: Tensor) -> Tensor:
        """``[B, heads, K, C]`` to ``[T, D]``."""
        rows_BKD = mixed_BHKC.transpose(1, 2).flatten(2)
        return rows_BKD.squeeze(0) if self.place_T is None else rows_BKD.flatten(0, 1)[self.place_T]


class Block(nn.Module):
    """Pre-norm transformer layer in which a token attends only to the tokens of its own item.

    Args:
        width: D.
        heads: attention heads.
        feedforward: width of the feed-forward part, relative to D.
        dropout: probability on attention weights and on the output of each part.
    """

    def __init__(self, width: int, heads: int, feedforward: float, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
        self.feedforward = _feedforward(width, feedforward, dropout)

    def forward(self, tokens_TD: Tensor, layout: AttentionLayout) -> Tensor:
        """Return ``[T, D]`` after attention and feed-forward.

        Args:
            tokens_TD: all tokens.
            layout: which tokens belong together.
        """
        query_BHKC, key_BHKC, value_BHKC = (
            layout.split(part_TD, self.heads) for part_TD in self.query_key_value(self.norm(tokens_TD)).chunk(3, dim=1)
        )
        mixed_BHKC = functional.scaled_dot_product_attention(
            query_BHKC, key_BHKC, value_BHKC, attn_mask=layout.mask, dropout_p=self.dropout if self.training else 0.0
        )
        tokens_TD = tokens_TD + self.out(layout.join(mixed_BHKC))
        mixed_TD: Tensor = tokens_TD + self.feedforward(tokens_TD)
        return mixed_TD


class LabelQueries(nn.Module):
    """Attention from a learned query of each label to an item's tokens (Query2Label, Liu et al. 2021, section 3.2).

    Args:
        width: D.
        labels: L.
        heads: attention heads.
        feedforward: width of the feed-forward part, relative to D.
        dropout: probability on the output of each part.
    """

    label_rows = ("query_LD",)

    def __init__(self, width: int, labels: int, heads: int, feedforward: float, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query_LD = nn.Parameter(nn.init.trunc_normal_(torch.empty(labels, width), std=0.02))
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
        self.feedforward = _feedforward(width, feedforward, dropout)

    def forward(self, tokens_TD: Tensor, item_T: Tensor, rows_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``hidden_NLD`` and the weight of each token for each label, ``[T, L]``: the mean over attention heads."""
        labels, width = self.query_LD.shape
        key_TD, value_TD = self.key_value(self.norm(tokens_TD)).chunk(2, dim=1)
        query_LHC = self.query(self.query_LD).unflatten(1, (self.heads, -1))
        key_THC, value_THC = key_TD.unflatten(1, (self.heads, -1)), value_TD.unflatten(1, (self.heads, -1))
        scores_TLH = torch.einsum("thc,lhc->tlh", key_THC, query_LHC) * (width // self.heads) ** -0.5
        share_TLH = softmax_by_item(scores_TLH.flatten(1), item_T, rows_N).reshape(-1, labels, self.heads)
        weighted_TLHC = share_TLH.unsqueeze(3) * value_THC.float().unsqueeze(1)
        gathered_NLD = sum_by_item(weighted_TLHC.flatten(1), item_T, rows_N).reshape(-1, labels, width)
        hidden_NLD = self.query_LD + self.out(gathered_NLD)
        return hidden_NLD + self.feedforward(hidden_NLD), share_TLH.mean(2)


def _feedforward(width: int, factor: float, dropout: float) -> nn.Sequential:
    hidden = max(1, round(width * factor))
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width), nn.Dropout(dropout))
