"""The model of contrastive pre-training: a safety model whose encoders and projections embed each modality of an item."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vigil_data.items import Modality
from vigil_data.loading.batch import Batch
from vigil_data.taxonomy import Taxonomy
from vigil_modeling.encoders import Encoder
from vigil_modeling.fusion.base import sum_by_item
from vigil_modeling.losses.contrastive import ContrastiveLoss
from vigil_modeling.safety_model import SafetyModel
from vigil_modeling.specs import Contrastive, ModelSpec


class ContrastiveModel(SafetyModel):
    """A safety model whose fusion and heads are not trained; encoders and projections have the names of the classifier's.

    Args:
        encoders: modality to its encoder.
        spec: width, dropout, and the weights to freeze.
        taxonomy: the labels of the classifier to be trained later.
        objective: kind of loss.

    Attributes:
        similarity: the loss, with its learned temperature.
    """

    def __init__(self, encoders: Mapping[Modality, Encoder], spec: ModelSpec, taxonomy: Taxonomy, objective: Contrastive) -> None:
        super().__init__(encoders, spec, taxonomy)
        self.similarity = ContrastiveLoss(objective)
        for name, parameter in self.named_parameters():
            if not name.startswith(("encoders.", "projections.", "similarity.")):
                parameter.requires_grad_(False)

    def forward(self, batch: Batch, touch_all: bool = False) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Embed each modality of each item.

        Args:
            batch: a batch on the model's device.
            touch_all: see :meth:`.SafetyModel.forward`.

        Returns:
            Mean of the projected tokens of an item's segments, of unit length, float32 ``[M, N, D]``, 0 where the item lacks
            the modality; and whether it has it, bool ``[M, N]``.
        """
        some = next(self.projections.parameters())
        rows_N = torch.arange(len(batch), device=some.device)
        embeddings, present = [], []
        for modality in self.modalities:
            embedding_ND = some.new_zeros(len(batch), self.width, dtype=torch.float32)
            present_N = torch.zeros_like(rows_N, dtype=torch.bool)
            if modality in batch.segments:
                segments = batch.segments[modality]
                tokens_SPD = self.encode(modality, **segments.inputs).float()
                # The length of the sum does not matter, as it is normalised.
                embedding_ND = normalize(sum_by_item(tokens_SPD.mean(1), segments.item, rows_N), dim=1)
                present_N = present_N.index_fill(0, segments.item, True)
            elif touch_all:
                embedding_ND = embedding_ND + 0.0 * self._touch(modality)
            embeddings.append(embedding_ND)
            present.append(present_N)
        return torch.stack(embeddings), torch.stack(present)
