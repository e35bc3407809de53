"""The safety model: an encoder for each modality, one fusion, and the taxonomy's heads."""

from collections.abc import Mapping
from typing import overload

import torch
from torch import Tensor, nn

from vigil_data.items import MODALITIES, TIMED, Modality
from vigil_data.loading.batch import Batch
from vigil_data.specs import Inputs
from vigil_data.taxonomy import Taxonomy
from vigil_modeling.encoders import Encoder, build_encoders
from vigil_modeling.fusion import Alone, Experts, LogOpinionPool, build_fusion
from vigil_modeling.guards.guard_model import build_guard
from vigil_modeling.heads import Heads
from vigil_modeling.multimodal_model import Balance, MultimodalModel, Prediction
from vigil_modeling.segment_position import build_position
from vigil_modeling.specs import AnyModelSpec, GuardSpec, LateFusion, ModelSpec


class Projection(nn.Module):
    """Projection of an encoder's tokens to the common width, plus a learned embedding of their modality.

    Args:
        encoder_width: width of the encoder's tokens.
        width: D, common to all modalities.
        dropout: probability on the projected tokens.
    """

    def __init__(self, encoder_width: int, width: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.LayerNorm(encoder_width), nn.Linear(encoder_width, width), nn.Dropout(dropout))
        self.modality_D = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))

    def forward(self, tokens_SPD: Tensor) -> Tensor:
        """``[S, P, encoder width]`` to ``[S, P, D]``."""
        projected_SPD: Tensor = self.project(tokens_SPD)
        return projected_SPD + self.modality_D


class SafetyModel(MultimodalModel):
    """Model whose fusion reads the segments of an item, and whose heads give one logit for each label.

    Args:
        encoders: modality to its encoder.
        spec: width, dropout, fusion, auxiliary heads, dependencies between labels, and the weights to freeze.
        taxonomy: the labels and their heads.

    Raises:
        UserError: if more layers are to be frozen than an encoder has.
    """

    def __init__(self, encoders: Mapping[Modality, Encoder], spec: ModelSpec, taxonomy: Taxonomy) -> None:
        projections = {m: Projection(encoders[m].width, spec.width, spec.dropout) for m in MODALITIES if m in encoders}
        super().__init__(encoders, projections, spec, taxonomy, spec.width)
        labels = len(self.labels)
        self.pool: LogOpinionPool | None = None
        self.experts: Experts | None = None
        if isinstance(spec.fusion, LateFusion):
            self.pool = LogOpinionPool(self.modalities, labels)
        else:
            self.fusion = build_fusion(spec.fusion, spec.width, labels, spec.dropout, self.modalities)
            self.heads = Heads(taxonomy, spec.width, spec.dropout)
        if spec.auxiliary_heads is not None or self.pool is not None:
            self.experts = Experts(self.modalities, taxonomy, spec.width, spec.dropout)
        self.position = build_position(spec)
        self.train()

    def segment_inputs(self, modality: Modality) -> tuple[str, ...]:
        """Return what :meth:`fuse` needs of the segments of a modality: ``item``, and ``role`` and ``time`` if it uses them."""
        position = self.position
        role = ["role"] if position is not None and position.role_RD is not None else []
        time = ["time"] if position is not None and position.time is not None and modality in TIMED else []
        return ("item", *role, *time)

    def fuse(
        self,
        tokens: Mapping[Modality, Tensor],
        segments: Mapping[Modality, Mapping[str, Tensor]],
        n_items: int | Tensor,
        balance: Balance | None = None,
    ) -> Prediction:
        """Fuse the segments of each item.

        Args:
            tokens: modality to ``[S, P, D]``, from :meth:`encode`; modalities may be absent and S may be 0.
            segments: modality to ``item`` int64 ``[S]``, the row of each segment's item, in any order; ``role`` int64 ``[S]`` and
                ``time`` float32 ``[S, 2]``, see :class:`.SegmentPosition` (default: ``body``, and no time).
            n_items: N, or ``arange(N)``, which keeps N dynamic in an exported graph.
            balance: called before the fusion, in training with auxiliary heads.
        """
        device = next(self.parameters()).device
        rows_N = n_items if isinstance(n_items, Tensor) else torch.arange(n_items, device=device)
        present = [m for m in self.modalities if m in tokens]
        packed = [tokens[m].flatten(0, 1) for m in present] or [torch.zeros(0, self.width, device=device)]
        sizes = [tokens[m].shape[0] * tokens[m].shape[1] if m in tokens else 0 for m in self.modalities]
        tokens_TD = torch.cat(packed)
        item_T = torch.cat([_per_token(segments[m]["item"], tokens[m]) for m in present] or [rows_N[:0]])
        if self.position is not None:  # also without any token, so that its weights have gradients on every rank
            role_T = torch.cat([_per_token(_role(segments[m]), tokens[m]) for m in present] or [item_T])
            time_T2 = torch.cat([_per_token(_time(segments[m]), tokens[m]) for m in present] or [_time({"item": item_T})])
            tokens_TD = tokens_TD + self.position(role_T, time_T2)
        alone: Alone | None = None
        if self.experts is not None and (self.training or self.pool is not None):
            alone = self.experts(tokens_TD, item_T, rows_N, sizes)
        if alone is not None and balance is not None:
            # Tensors of their own: their gradient is the fused prediction's alone.
            parts = [part_SD.view_as(part_SD) for part_SD in torch.split(tokens_TD, sizes)]
            balance(alone, dict(zip(self.modalities, parts, strict=True)))
            tokens_TD = torch.cat(parts)
        if self.pool is not None:
            assert alone is not None
            raw_NL, evidence_TL = self.pool(alone, item_T, sizes)
        else:
            hidden_NLD, evidence_TL = self.fusion(tokens_TD, item_T, rows_N, sizes)
            raw_NL = self.heads(hidden_NLD)
        evidence: dict[Modality, Tensor] = {}
        start = 0
        for modality, part in zip(present, packed, strict=False):
            stop = start + part.shape[0]
            evidence[modality] = evidence_TL[start:stop].unflatten(0, tokens[modality].shape[:2]).sum(1)
            start = stop
        prediction = Prediction(self.structure.constrain(raw_NL), raw_NL, evidence)
        return prediction._replace(alone=alone) if self.training else prediction

    def forward(self, batch: Batch, touch_all: bool = False, balance: Balance | None = None) -> Prediction:
        """Predict the labels of a batch.

        Args:
            batch: see :meth:`.MultimodalModel.forward`.
            touch_all: see there.
            balance: see :meth:`fuse`.
        """
        tokens: dict[Modality, Tensor] = {}
        touched: list[Tensor] = []
        spans_STK: Tensor | None = None
        for modality in self.modalities:
            if modality == "text" and self.spans is not None and modality in batch.segments:
                text = batch.segments[modality].inputs
                tokens[modality], spans_STK = self.encode_text(**text)
                spans_STK = spans_STK.masked_fill(text["attention_mask"].unsqueeze(-1) == 0, torch.nan)
            elif modality in batch.segments:
                tokens[modality] = self.encode(modality, **batch.segments[modality].inputs)
            elif touch_all:
                touched.append(self._touch(modality))
        prediction = self.fuse(tokens, {m: batch.segments[m].placement() for m in tokens}, len(batch), balance)
        for total in touched:
            prediction = prediction._replace(logits_NL=prediction.logits_NL + 0.0 * total, raw_NL=prediction.raw_NL + 0.0 * total)
        return prediction._replace(spans_STK=spans_STK)

    @property
    def has_auxiliary_heads(self) -> bool:
        """Whether there are heads that only training uses."""
        return self.experts is not None and self.pool is None

    def drop_auxiliary_heads(self) -> None:
        """Remove the heads that only training uses."""
        if self.has_auxiliary_heads:
            self.experts = None


def _per_token(values_S: Tensor, tokens_SPD: Tensor) -> Tensor:
    """Repeat each segment's values ``[S, ...]`` for each of its tokens: ``[S * P, ...]``."""
    return values_S.unsqueeze(1).expand(-1, tokens_SPD.shape[1], *values_S.shape[1:]).flatten(0, 1)


def _role(segments: Mapping[str, Tensor]) -> Tensor:
    return segments["role"] if "role" in segments else torch.zeros_like(segments["item"])


def _time(segments: Mapping[str, Tensor]) -> Tensor:
    if "time" in segments:
        return segments["time"]
    return torch.full_like(segments["item"], -1, dtype=torch.float32).unsqueeze(1).expand(-1, 2)


@overload
def build_model(spec: ModelSpec, inputs: Inputs, taxonomy: Taxonomy, load_weights: bool = True) -> SafetyModel: ...
@overload
def build_model(spec: AnyModelSpec, inputs: Inputs, taxonomy: Taxonomy, load_weights: bool = True) -> MultimodalModel: ...
def build_model(spec: AnyModelSpec, inputs: Inputs, taxonomy: Taxonomy, load_weights: bool = True) -> MultimodalModel:
    """Build the model of a recipe; random weights come from torch's global generator, which the caller seeds.

    Args:
        spec: the recipe's ``model``.
        inputs: the recipe's ``inputs``, with the same modalities as ``spec.encoders``.
        taxonomy: the labels.
        load_weights: false skips pretrained weights, for a checkpoint to be loaded.

    Raises:
        UserError: if an encoder or its weights are not available or do not match the inputs; of a guard, if the prompt cannot be
            built.
    """
    if isinstance(spec, GuardSpec):
        return build_guard(spec, inputs, taxonomy, load_weights)
    return SafetyModel(build_encoders(spec.encoders, inputs, load_weights), spec, taxonomy)
