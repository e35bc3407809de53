"""Fusion of an item's segment tokens into one vector for each label, with the attention weight of each token.

Tokens of all items are packed into one sequence without padding, each with the row of its item. ``rows_N`` is ``arange(N)``, a
tensor rather than an integer, so that the number of items stays dynamic in an exported graph. The output for an item depends only
on its own tokens and not on their order.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vigil_modeling.specs import FusionSpec, GatedFusion, MeanFusion, TransformerFusion


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
    """

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.labels = labels
        self.prior_D = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))

    def with_prior(self, tokens_TD: Tensor, item_T: Tensor, rows_N: Tensor) -> tuple[Tensor, Tensor]:
        """Add the prior as one more token of each item: ``[T + N, D]`` and ``[T + N]``, the priors last."""
        prior_ND = self.prior_D.to(tokens_TD.dtype).expand(rows_N.shape[0], -1)
        return torch.cat([tokens_TD, prior_ND]), torch.cat([item_T, rows_N])


class Mean(Fusion):
    """Mean of an item's tokens, the same for every label; the prior for an item without tokens."""

    def forward(self, tokens_TD: Tensor, item_T: Tensor, rows_N: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Fusion`."""
        tokens_TD = tokens_TD.float()
        count_N1 = sum_by_item(tokens_TD.new_ones(tokens_TD.shape[0], 1), item_T, rows_N)
        share_T1 = 1 / count_N1.index_select(0, item_T)
        mean_ND = sum_by_item(tokens_TD * share_T1, item_T, rows_N) + (count_N1 == 0) * self.prior_D
        return mean_ND.unsqueeze(1).expand(-1, self.labels, -1), share_T1.expand(-1, self.labels)


class Gated(Fusion):
    """Gated attention for each label (Ilse, Tomczak and Welling 2018, equation 9) over an item's tokens and the prior.

    Args:
        width: D.
        labels: L.
        hidden: width of the gate.
        dropout: probability on the gate's output.
    """

    def __init__(self, width: int, labels: int, hidden: int, dropout: float) -> None:
        super().__init__(width, labels)
        self.norm = nn.LayerNorm(width)
        self.tanh = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, labels, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_TD: Tensor, item_T: Tensor, rows_N: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Fusion`."""
        n_tokens, width = tokens_TD.shape
        tokens_TD, item_T = self.with_prior(tokens_TD, item_T, rows_N)
        values_TD = self.norm(tokens_TD)
        scores_TL = self.score(self.dropout(torch.tanh(self.tanh(values_TD)) * torch.sigmoid(self.gate(values_TD))))
        share_TL = softmax_by_item(scores_TL, item_T, rows_N)
        weighted_TLD = share_TL.unsqueeze(2) * values_TD.float().unsqueeze(1)
        hidden_NLD = sum_by_item(weighted_TLD.flatten(1), item_T, rows_N).reshape(-1, self.labels, width)
        return hidden_NLD, share_TL[:n_tokens]


class AttentionLayout:
    """Where attention finds the tokens of an item: in a mask over all tokens, or in a padded row for each item.

    The mask costs ``T * T`` for each head, the rows ``N * K * K`` with K tokens in the largest item; the cheaper one is taken.
    An exported graph always has the mask, since K depends on the data.

    Args:
        item_T: row of each token's item.
        rows_N: ``arange(N)``.
    """

    def __init__(self, item_T: Tensor, rows_N: Tensor) -> None:
        self.place_T: Tensor | None = None
        exporting = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if not exporting and len(item_T):
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


class Transformer(Fusion):
    """Self-attention over an item's tokens and the prior, then a query for each label (Query2Label, Liu et al. 2021, sec. 3.2).

    Args:
        width: D.
        labels: L.
        spec: layers, heads and feed-forward width.
        dropout: see :class:`Block`.
    """

    def __init__(self, width: int, labels: int, spec: TransformerFusion, dropout: float) -> None:
        super().__init__(width, labels)
        self.heads = spec.heads
        self.blocks = nn.ModuleList(Block(width, spec.heads, spec.feedforward, dropout) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(width)
        self.query_LD = nn.Parameter(nn.init.trunc_normal_(torch.empty(labels, width), std=0.02))
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
        self.feedforward = _feedforward(width, spec.feedforward, dropout)

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


def _feedforward(width: int, factor: float, dropout: float) -> nn.Sequential:
    hidden = max(1, round(width * factor))
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width), nn.Dropout(dropout))


CONSTRUCTORS: Mapping[type, Callable[[int, int, Any, float], Fusion]] = {
    MeanFusion: lambda width, labels, _spec, _dropout: Mean(width, labels),
    GatedFusion: lambda width, labels, spec, dropout: Gated(width, labels, spec.hidden, dropout),
    TransformerFusion: Transformer,
}


def build_fusion(spec: FusionSpec, width: int, labels: int, dropout: float) -> Fusion:
    """Build the fusion that ``spec`` describes.

    Args:
        spec: kind and sizes.
        width: D of the tokens; a multiple of the number of heads for the transformer.
        labels: L.
        dropout: probability; see each fusion.
    """
    return CONSTRUCTORS[type(spec)](width, labels, spec, dropout)
