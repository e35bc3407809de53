"""The safety model: an encoder for each modality, one fusion, and the taxonomy's heads."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from vigil_data.errors import UserError
from vigil_data.items import MODALITIES, TIMED, Modality
from vigil_data.loading.batch import TOKENS, Batch, Segments
from vigil_data.specs import Inputs
from vigil_data.taxonomy import Taxonomy
from vigil_modeling.encoders import Encoder, build_encoder, freeze, set_mode, store_frozen_in_bf16
from vigil_modeling.fusion import Alone, Experts, LogOpinionPool, build_fusion
from vigil_modeling.heads import Heads
from vigil_modeling.label_structure import LabelStructure
from vigil_modeling.segment_position import build_position
from vigil_modeling.specs import LateFusion, ModelSpec

Balance = Callable[[Alone, Mapping[Modality, Tensor]], None]
"""Called with the auxiliary predictions and each modality's tokens ``[T, D]``, which have the fused prediction's gradient."""

TOKENS_MULTIPLE = 16
"""Passages are padded to a multiple of so many tokens for compiled encoders; attention kernels ask for multiples of 8 or 16."""

COMPILER_BACKEND = "inductor"
"""Backend of ``torch.compile``; tests replace it."""


class Prediction(NamedTuple):
    """Output of the model for a batch.

    Attributes:
        logits_NL: float ``[N, L]`` in the taxonomy's order.
        raw_NL: outputs of the heads, on which the loss is computed; the logits, unless labels depend on each other.
        evidence: modality to float32 ``[S, L]``, the attention weight of each segment for each label. The weights of an item's
            segments of all modalities sum to 1 minus the weight of the learned prior.
        alone: in training, the predictions of the auxiliary heads; ``None`` without them.
    """

    logits_NL: Tensor
    raw_NL: Tensor
    evidence: dict[Modality, Tensor]
    alone: Alone | None = None


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


class SafetyModel(nn.Module):
    """Model from packed segments of any modalities to one logit for each item and label.

    Args:
        encoders: modality to its encoder.
        spec: width, dropout, fusion, auxiliary heads, dependencies between labels, and the weights to freeze.
        taxonomy: the labels and their heads.

    Attributes:
        cached: modalities whose batches have tokens of the token cache; their frozen encoders do not run in training.

    Raises:
        UserError: if more layers are to be frozen than an encoder has.
    """

    def __init__(self, encoders: Mapping[Modality, Encoder], spec: ModelSpec, taxonomy: Taxonomy) -> None:
        super().__init__()
        self.modalities: tuple[Modality, ...] = tuple(m for m in MODALITIES if m in encoders)
        self.cached: frozenset[Modality] = frozenset()
        self.labels = taxonomy.labels
        self.width = spec.width
        self.encoders = nn.ModuleDict({m: encoders[m] for m in self.modalities})
        self.projections = nn.ModuleDict({m: Projection(encoders[m].width, spec.width, spec.dropout) for m in self.modalities})
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
        self.structure = LabelStructure.of(spec, taxonomy)
        self.position = build_position(spec)
        self._compiled: int | None = None
        self._touched: set[Modality] = set()
        for modality in self.modalities:
            encoder_spec = getattr(spec.encoders, modality)
            try:
                freeze(encoders[modality], encoder_spec.frozen if encoder_spec is not None else False)
            except ValueError as error:
                raise UserError(f"model.encoders.{modality}.frozen: {error}") from error
        self.train()

    def encoder(self, modality: Modality) -> Encoder:
        """Return the encoder of a modality."""
        encoder = self.encoders[modality]
        assert isinstance(encoder, Encoder)
        return encoder

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules but frozen ones, which stay in evaluation mode."""
        super().train(mode)
        for modality in self.modalities:
            set_mode(self.encoder(modality), mode)
        return self

    def label_rows(self) -> set[str]:
        """Return the names in ``state_dict()`` of the tensors with one row for each label, in the fusion or in a head."""
        return {
            f"{prefix}.{name}" for prefix, module in self.named_modules() if prefix for name in getattr(module, "label_rows", ())
        }

    def encode(self, modality: Modality, **inputs: Tensor) -> Tensor:
        """Encode segments of one modality.

        Args:
            modality: one of :attr:`modalities`.
            inputs: inputs of its encoder, each ``[S, ...]``, or ``tokens``: what the encoder makes of them, ``[S, P, width]``,
                from the token cache.

        Returns:
            Tokens ``[S, P, D]`` of the common width.
        """
        encoded = inputs[TOKENS] if TOKENS in inputs else self._run_encoder(modality, inputs)
        tokens_SPD: Tensor = self.projections[modality](encoded)
        return tokens_SPD

    def _run_encoder(self, modality: Modality, inputs: dict[str, Tensor]) -> Tensor:
        encoder = self.encoders[modality]
        if modality in self._touched:
            self._touched.discard(modality)
            set_mode(self.encoder(modality), self.training)
        if self._compiled is None:
            return encoder(**inputs)  # type: ignore[no-any-return]
        if not self.training or len(next(iter(inputs.values()))) < 2:
            # Validation computes what the exported model does. One segment, such as a blank one, would be a graph of its own.
            with torch.compiler.set_stance("force_eager"):
                return encoder(**inputs)  # type: ignore[no-any-return]
        if modality == "text":
            length = inputs["input_ids"].shape[1]
            missing = max(0, min(-length % TOKENS_MULTIPLE, self._compiled - length))
            inputs = {name: nn.functional.pad(tensor, (0, missing)) for name, tensor in inputs.items()}
        return encoder(**inputs)  # type: ignore[no-any-return]

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
            batch: a batch on the model's device; modalities that the model lacks are ignored.
            touch_all: give every weight a gradient, which is zero for a modality that the batch lacks. The encoders always run in
                the same order, so that the collectives of several ranks match.
            balance: see :meth:`fuse`.
        """
        tokens: dict[Modality, Tensor] = {}
        touched: list[Tensor] = []
        for modality in self.modalities:
            if modality in batch.segments:
                tokens[modality] = self.encode(modality, **batch.segments[modality].inputs)
            elif touch_all:
                touched.append(self._touch(modality))
        prediction = self.fuse(tokens, {m: batch.segments[m].placement() for m in tokens}, len(batch), balance)
        for total in touched:
            prediction = prediction._replace(logits_NL=prediction.logits_NL + 0.0 * total, raw_NL=prediction.raw_NL + 0.0 * total)
        return prediction

    def store_frozen_weights(self, spec: ModelSpec) -> None:
        """Keep frozen weights in the dtype of the recipe, for training; a model that is built from a checkpoint stays in float32.

        Args:
            spec: the recipe's ``model``.
        """
        for modality in self.modalities:
            if getattr(spec.encoders, modality).frozen_dtype == "bf16":
                store_frozen_in_bf16(self.encoder(modality))

    @property
    def has_auxiliary_heads(self) -> bool:
        """Whether there are heads that only training uses."""
        return self.experts is not None and self.pool is None

    def drop_auxiliary_heads(self) -> None:
        """Remove the heads that only training uses."""
        if self.has_auxiliary_heads:
            self.experts = None

    def checkpoint_activations(self) -> None:
        """Store only the inputs of each encoder layer and recompute the rest in the backward pass (Chen et al. 2016).

        Raises:
            UserError: if an encoder's library does not support it.
        """
        for modality in self.modalities:
            self.encoder(modality).checkpoint_activations()

    def compile_encoders(self, max_tokens: int) -> None:
        """Compile the encoders for training with ``torch.compile`` (Ansel et al. 2024, "PyTorch 2", section 4), on first use.

        The number of segments and of tokens is dynamic in the graphs. Passages are padded to a multiple of
        :data:`TOKENS_MULTIPLE` tokens, so that what kernels require of a length is the same for all of them, and batches of one
        segment run as before: the number of graphs does not depend on the batches.

        Args:
            max_tokens: length of the longest passage, ``inputs.text.max_tokens``.
        """
        for modality in self.modalities:
            self.encoder(modality).compile(dynamic=True, backend=COMPILER_BACKEND)
        self._compiled = max_tokens

    def compiler_batches(self) -> Iterator[Batch]:
        """Yield batches for which the encoders compile all graphs that training needs: two segments of each modality.

        A run that compiles them first computes the same after it is resumed, whatever batches come then: sizes seen in
        compilation may decide how a kernel adds up.
        """
        longest = self._compiled or 0
        multiple = TOKENS_MULTIPLE * max(1, longest // 2 // TOKENS_MULTIPLE)
        for tokens in sorted({min(multiple, longest), longest}):
            segments = {}
            for modality in self.modalities:
                inputs = {n: t.expand(2, *t.shape[1:]).contiguous() for n, t in self.encoder(modality).blank().items()}
                if modality == "text":
                    inputs = {name: tensor[:, :1].repeat(1, tokens) for name, tensor in inputs.items()}
                segments[modality] = Segments(torch.arange(2), inputs, torch.zeros(2, dtype=torch.int64), torch.zeros(2, 2))
            yield Batch(("", ""), segments, torch.zeros(2, len(self.labels)))

    def _touch(self, modality: Modality) -> Tensor:
        """Return a number that depends on all weights of a modality, in evaluation mode to keep running statistics unchanged.

        The encoder stays in that mode until it is used for a batch, since the backward pass recomputes checkpointed layers in it.
        """
        encoder, projection = self.encoder(modality), self.projections[modality]
        blank = encoder.blank()
        if modality in self.cached:  # Other ranks do not run the encoder either.
            blank = {TOKENS: next(projection.parameters()).new_zeros(1, 1, encoder.width)}
        self._touched.discard(modality)
        encoder.eval()
        projection.eval()
        for module in encoder.modules():
            # ZeRO-3 gathers a recomputed layer's weights twice, so the layer must be recomputed on every rank.
            module.training = getattr(module, "gradient_checkpointing", False) and self.training
        total = self.encode(modality, **blank).sum()
        projection.train(self.training)
        self._touched.add(modality)
        return total


def _per_token(values_S: Tensor, tokens_SPD: Tensor) -> Tensor:
    """Repeat each segment's values ``[S, ...]`` for each of its tokens: ``[S * P, ...]``."""
    return values_S.unsqueeze(1).expand(-1, tokens_SPD.shape[1], *values_S.shape[1:]).flatten(0, 1)


def _role(segments: Mapping[str, Tensor]) -> Tensor:
    return segments["role"] if "role" in segments else torch.zeros_like(segments["item"])


def _time(segments: Mapping[str, Tensor]) -> Tensor:
    if "time" in segments:
        return segments["time"]
    return torch.full_like(segments["item"], -1, dtype=torch.float32).unsqueeze(1).expand(-1, 2)


def build_model(spec: ModelSpec, inputs: Inputs, taxonomy: Taxonomy, load_weights: bool = True) -> SafetyModel:
    """Build the model of a recipe; random weights come from torch's global generator, which the caller seeds.

    Args:
        spec: the recipe's ``model``.
        inputs: the recipe's ``inputs``, with the same modalities as ``spec.encoders``.
        taxonomy: the labels.
        load_weights: false skips pretrained weights, for a checkpoint to be loaded.

    Raises:
        UserError: if an encoder or its weights are not available or do not match the inputs.
    """
    return SafetyModel(build_encoders(spec, inputs, load_weights), spec, taxonomy)


def build_encoders(spec: ModelSpec, inputs: Inputs, load_weights: bool = True) -> dict[Modality, Encoder]:
    """Build the encoder of each modality of a recipe; see :func:`build_model`."""
    encoders: dict[Modality, Encoder] = {}
    for modality in MODALITIES:
        encoder_spec = getattr(spec.encoders, modality)
        if encoder_spec is not None:
            encoders[modality] = build_encoder(modality, encoder_spec, inputs, load_weights)
    return encoders
