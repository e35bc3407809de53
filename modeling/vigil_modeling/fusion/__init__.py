"""Fusion of an item's segment tokens into one vector for each label, with the attention weight of each token.

Tokens of all items are packed into one sequence without padding, each with the row of its item. ``rows_N`` is ``arange(N)``, a
tensor rather than an integer, so that the number of items stays dynamic in an exported graph. The output for an item depends only
on its own tokens and not on their order.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vigil_modeling.fusion.attention import AttentionLayout
from vigil_modeling.fusion.base import Fusion, softmax_by_item, sum_by_item
from vigil_modeling.fusion.bottleneck import Bottleneck
from vigil_modeling.fusion.late import Alone, Experts, LogOpinionPool
from vigil_modeling.fusion.pooling import Gated, Mean
from vigil_modeling.fusion.transformer import Transformer
from vigil_modeling.specs import BottleneckFusion, GatedFusion, MeanFusion, TokenFusionSpec, TransformerFusion

__all__ = [
    "Alone",
    "AttentionLayout",
    "Bottleneck",
    "Experts",
    "Fusion",
    "Gated",
    "LogOpinionPool",
    "Mean",
    "Transformer",
    "build_fusion",
    "softmax_by_item",
    "sum_by_item",
]

CONSTRUCTORS: Mapping[type, Callable[[int, int, Any, float, Sequence[str]], Fusion]] = {
    MeanFusion: lambda width, labels, _spec, _dropout, _modalities: Mean(width, labels),
    GatedFusion: lambda width, labels, spec, dropout, _modalities: Gated(width, labels, spec.hidden, dropout),
    TransformerFusion: lambda width, labels, spec, dropout, _modalities: Transformer(width, labels, spec, dropout),
    BottleneckFusion: Bottleneck,
}


def build_fusion(spec: TokenFusionSpec, width: int, labels: int, dropout: float, modalities: Sequence[str]) -> Fusion:
    """Build the fusion of tokens that ``spec`` describes; late fusion joins logits instead: :class:`LogOpinionPool`.

    Args:
        spec: kind and sizes.
        width: D of the tokens; a multiple of the number of heads for fusions with attention heads.
        labels: L.
        dropout: probability; see each fusion.
        modalities: names of the modalities, in the order of the tokens.
    """
    return CONSTRUCTORS[type(spec)](width, labels, spec, dropout, modalities)
