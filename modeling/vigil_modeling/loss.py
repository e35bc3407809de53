"""Binary cross-entropy over known targets."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from vigil_data.taxonomy import Taxonomy
from vigil_modeling.specs import BinaryCrossEntropy


class MaskedBCE(nn.Module):
    """Weighted binary cross-entropy, summed over known targets; an unknown target has no effect on value or gradient.

    Args:
        spec: label weights and positive weights.
        taxonomy: order of labels.
    """

    label_weight_L: Tensor
    positive_weight_L: Tensor

    def __init__(self, spec: BinaryCrossEntropy, taxonomy: Taxonomy) -> None:
        super().__init__()
        for name, weights in (("label_weight_L", spec.label_weights), ("positive_weight_L", spec.positive_weights)):
            self.register_buffer(name, torch.tensor([weights.get(label, 1.0) for label in taxonomy.labels]), persistent=False)

    def forward(self, logits_NL: Tensor, targets_NL: Tensor) -> Tensor:
        """Return the sum over known targets; zero with zero gradients if none is known.

        Args:
            logits_NL: any float dtype; the loss is computed in float32.
            targets_NL: values in [0, 1], NaN for unknown.
        """
        known_NL = ~targets_NL.isnan()
        cells_NL = functional.binary_cross_entropy_with_logits(
            logits_NL.float(),
            targets_NL.nan_to_num().float(),
            weight=self.label_weight_L,
            pos_weight=self.positive_weight_L,
            reduction="none",
        )
        return cells_NL.masked_fill(~known_NL, 0.0).sum()

    def weight(self, targets_NL: Tensor) -> Tensor:
        """Return the sum of label weights over known targets: the mean loss is ``forward / weight``."""
        return ((~targets_NL.isnan()).float() * self.label_weight_L).sum()
