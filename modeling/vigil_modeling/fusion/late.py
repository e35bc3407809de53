"""Late fusion: each modality predicts alone, and the logits are combined."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vigil_data.taxonomy import Taxonomy
from vigil_modeling.fusion.base import has_tokens
from vigil_modeling.fusion.pooling import Gated
from vigil_modeling.heads import Heads


class Alone(NamedTuple):
    """Predictions of each modality alone.

    Attributes:
        raw_MNL: outputs of each modality's heads, in the model's order of modalities; those of an item without the modality are
            of no meaning.
        present_MN: which items have the modality.
        evidence_TL: weight of each token within its own modality, float32; see :class:`~vigil_modeling.fusion.base.Fusion`.
    """

    raw_MNL: Tensor
    present_MN: Tensor
    evidence_TL: Tensor


class Expert(nn.Module):
    """Heads of one modality, over gated attention for each label to the tokens of that modality.

    Args:
        taxonomy: the labels and their heads.
        width: D.
        dropout: probability in the gate and the heads.
    """

    def __init__(self, taxonomy: Taxonomy, width: int, dropout: float) -> None:
        super().__init__()
        self.pool = Gated(width, len(taxonomy.labels), width // 2, dropout)
        self.heads = Heads(taxonomy, width, dropout)

    def forward(self, tokens_TD: Tensor, item_T: Tensor, rows_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs of the heads, ``[N, L]``, and the weight of each token, ``[T, L]``."""
        hidden_NLD, evidence_TL = self.pool(tokens_TD, item_T, rows_N)
        return self.heads(hidden_NLD), evidence_TL


class Experts(nn.ModuleDict):
    """An expert for each modality.

    Args:
        modalities: names of the modalities.
        taxonomy: see :class:`Expert`.
        width: D.
        dropout: see :class:`Expert`.
    """

    def __init__(self, modalities: Sequence[str], taxonomy: Taxonomy, width: int, dropout: float) -> None:
        super().__init__({modality: Expert(taxonomy, width, dropout) for modality in modalities})

    def forward(self, tokens_TD: Tensor, item_T: Tensor, rows_N: Tensor, sizes: Sequence[int]) -> Alone:
        """Predict from each modality alone; all experts run, whichever modalities the batch has."""
        tokens, items = torch.split(tokens_TD, list(sizes)), torch.split(item_T, list(sizes))
        outputs = [expert(part, item_S, rows_N) for expert, part, item_S in zip(self.values(), tokens, items, strict=True)]
        present_MN = torch.stack([has_tokens(item_S, rows_N)[:, 0] for item_S in items])
        return Alone(torch.stack([raw_NL for raw_NL, _ in outputs]), present_MN, torch.cat([share for _, share in outputs]))


class LogWeight(nn.Module):
    """Logarithm of the weight of an expert for each label, ``[L]``."""

    label_rows = ("log_weight_L",)

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.log_weight_L = nn.Parameter(torch.zeros(labels))

    def forward(self) -> Tensor:
        """Return it."""
        return self.log_weight_L


class LogOpinionPool(nn.Module):
    """Logarithmic opinion pool of the experts of the modalities that an item has.

    With prior log odds ``b`` and weights ``w > 0`` of each label, ``logit = b + sum over present m of w_m (z_m - b)``: the
    product rule for classifiers of conditionally independent inputs (Kittler et al. 1998, equation 7), whose posteriors have
    exponents (Heskes 1998, section 2), which are inverse temperatures. Weights start at 1, where an item's only modality decides
    as its expert does. They learn from the loss of the result, the experts from their own losses alone.

    Args:
        modalities: names of the modalities.
        labels: L.
    """

    label_rows = ("prior_L",)

    def __init__(self, modalities: Sequence[str], labels: int) -> None:
        super().__init__()
        self.log_weights = nn.ModuleDict({modality: LogWeight(labels) for modality in modalities})
        self.prior_L = nn.Parameter(torch.zeros(labels))

    def forward(self, alone: Alone, item_T: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the combined outputs, float32 ``[N, L]``, and the evidence of each token, ``[T, L]``.

        A modality's evidence is its weight, and the prior's is ``|1 - sum of weights|``, all divided by their sum.
        """
        raw_MNL = alone.raw_MNL.float()
        if self.training:
            raw_MNL = raw_MNL.detach()
        weight_MNL = torch.stack([each() for each in self.log_weights.values()]).exp().unsqueeze(1) * alone.present_MN.unsqueeze(
            2
        )
        total_NL = weight_MNL.sum(0)
        raw_NL = self.prior_L + (weight_MNL * (raw_MNL - self.prior_L)).sum(0)
        share_MNL = weight_MNL / (total_NL + (1 - total_NL).abs())
        items = torch.split(item_T, list(sizes))
        of_token = [share_NL.index_select(0, item_S) for share_NL, item_S in zip(share_MNL, items, strict=True)]
        return raw_NL, torch.cat(of_token) * alone.evidence_TL
