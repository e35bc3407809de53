"""Fusion of an item's segment tokens into one vector for each label, with the attention weight of each token.

Tokens of all items are packed into one sequence without padding, each with the row of its item. ``rows_N`` is ``arange(N)``, a
tensor rather than an integer, so that the number of items stays dynamic in an exported graph. The output for an item depends only
on its own tokens and not on their order.
"""

from collections.abc import Callable, Mapping
from typing import Any

from vigil_modeling.fusion.attention import AttentionLayout
from vigil_modeling.fusion.base import Fusion, softmax_by_item, sum_by_item
from vigil_modeling.fusion.pooling import Gated, Mean
from vigil_modeling.fusion.transformer import Transformer
from vigil_modeling.specs import FusionSpec, GatedFusion, MeanFusion, TransformerFusion

__all__ = [
    "AttentionLayout",
    "Fusion",
    "Gated",
    "Mean",
    "Transformer",
    "build_fusion",
    "softmax_by_item",
    "sum_by_item",
]

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
