"""Base class of the models: encoders of modalities, whose outputs become one logit for each item and label."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vigil_data.errors import UserError
from vigil_data.items import MODALITIES, Modality
from vigil_data.loading.batch import TOKENS, Batch, Segments
from vigil_data.taxonomy import Taxonomy
from vigil_modeling.encoders import Encoder, freeze, set_mode, store_frozen_in_bf16, store_frozen_in_nf4
from vigil_modeling.fusion import Alone
from vigil_modeling.label_structure import LabelStructure
from vigil_modeling.losses import Composites
from vigil_modeling.specs import AnyModelSpec

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
        composites: a guard's answers about policies of several clauses, if the batch asks about any.
        spans_STK: log-odds that each token of a text segment is in a span of each of the K labels with spans, float32; NaN for
            padding, and for tokens that a guard does not read. ``None`` without a span head, or without text.
    """

    logits_NL: Tensor
    raw_NL: Tensor
    evidence: dict[Modality, Tensor]
    alone: Alone | None = None
    composites: Composites | None = None
    spans_STK: Tensor | None = None


class MultimodalModel(nn.Module):
    """Base class of models from packed segments of any modalities to one logit for each item and label.

    Args:
        encoders: modality to its encoder.
        projections: modality to the module from its encoder's tokens to width D; a modality may have none.
        spec: the weights to freeze, and dependencies between labels.
        taxonomy: the labels.
        width: D.

    Attributes:
        span_labels: the K labels with spans, in the taxonomy's order; empty without a span head.
        spans: the span head, from the text encoder's tokens to K log-odds.
        cached: modalities whose batches have tokens of the token cache; their frozen encoders do not run in training.
        prompt_rows: number and padded length of the rows of prompts that a guard ran in the last forward pass.

    Raises:
        UserError: if more layers are to be frozen than an encoder has.
    """

    def __init__(
        self,
        encoders: Mapping[Modality, Encoder],
        projections: Mapping[Modality, nn.Module],
        spec: AnyModelSpec,
        taxonomy: Taxonomy,
        width: int,
    ) -> None:
        super().__init__()
        self.modalities: tuple[Modality, ...] = tuple(m for m in MODALITIES if m in encoders)
        self.cached: frozenset[Modality] = frozenset()
        self.prompt_rows = (0, 0)
        self.labels = taxonomy.labels
        self.width = width
        self.encoders = nn.ModuleDict({m: encoders[m] for m in self.modalities})
        self.projections = nn.ModuleDict({m: projections[m] for m in self.modalities if m in projections})
        self.structure = LabelStructure.of(spec, taxonomy)
        columns = {} if spec.spans is None else spec.spans.columns
        self.span_labels: tuple[str, ...] = tuple(label for label in self.labels if label in columns)
        self.spans: nn.Linear | None = None
        if self.span_labels:
            self.spans = nn.Linear(encoders["text"].width, len(self.span_labels))
        self._compiled: int | None = None
        self._touched: set[Modality] = set()
        for modality in self.modalities:
            encoder_spec = getattr(spec.encoders, modality)
            try:
                freeze(encoders[modality], encoder_spec.frozen if encoder_spec is not None else False)
            except ValueError as error:
                raise UserError(f"model.encoders.{modality}.frozen: {error}") from error

    def forward(self, batch: Batch, touch_all: bool = False, balance: Balance | None = None) -> Prediction:
        """Predict the labels of a batch.

        Args:
            batch: a batch on the model's device; modalities that the model lacks are ignored.
            touch_all: give every weight a gradient, which is zero for a modality that the batch lacks. The encoders always run in
                the same order, so that the collectives of several ranks match.
            balance: called before the fusion, in training with auxiliary heads.
        """
        raise NotImplementedError

    def map_values(self, batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return a batch with ``function`` applied to its tensors but for those whose values decide shapes in :meth:`forward`."""
        segments = {modality: segments.map(function) for modality, segments in batch.segments.items()}
        return Batch(batch.ids, segments, function(batch.targets))

    def for_known_targets(self, batch: Batch, complete_N: NDArray[np.bool_] | None = None) -> Batch:
        """Return a batch for which :meth:`forward` may leave out labels that no known target needs, with arbitrary logits.

        Args:
            batch: on any device.
            complete_N: items none of whose labels is left out (default: none).
        """
        del complete_N
        return batch

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

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode passages with a span head.

        Args:
            input_ids: int64 ``[S, T]``.
            attention_mask: int64 ``[S, T]``, 0 at padding.

        Returns:
            Tokens ``[S, P, D]``, see :meth:`encode`, and log-odds float32 ``[S, T, K]``, arbitrary at padding.
        """
        assert self.spans is not None
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        encoded = self._run_encoder("text", inputs, states=True)
        states_STD = encoded.states_STD[:, : input_ids.shape[1]]  # compiled encoders read further padding
        return self.projections["text"](encoded.tokens_SPD), self.spans(states_STD).float()

    def _run_encoder(self, modality: Modality, inputs: dict[str, Tensor], **options: bool) -> Any:
        encoder = self.encoders[modality]
        if modality in self._touched:
            self._touched.discard(modality)
            set_mode(self.encoder(modality), self.training)
        if self._compiled is None:
            return encoder(**inputs, **options)
        if not self.training or len(next(iter(inputs.values()))) < 2:
            # Validation computes what the exported model does. One segment, such as a blank one, would be a graph of its own.
            with torch.compiler.set_stance("force_eager"):
                return encoder(**inputs, **options)
        if modality == "text":
            length = inputs["input_ids"].shape[1]
            missing = max(0, min(-length % TOKENS_MULTIPLE, self._compiled - length))
            inputs = {name: nn.functional.pad(tensor, (0, missing)) for name, tensor in inputs.items()}
        return encoder(**inputs, **options)

    def store_frozen_weights(self, spec: AnyModelSpec) -> None:
        """Keep frozen weights in the dtype of the recipe, for training; a model that is built from a checkpoint stays in float32.

        Args:
            spec: the recipe's ``model``.
        """
        for modality in self.modalities:
            match getattr(spec.encoders, modality).frozen_dtype:
                case "bf16":
                    store_frozen_in_bf16(self.encoder(modality))
                case "nf4":
                    store_frozen_in_nf4(self.encoder(modality))

    @property
    def has_auxiliary_heads(self) -> bool:
        """Whether there are heads that only training uses."""
        return False

    def drop_auxiliary_heads(self) -> None:
        """Remove the heads that only training uses."""

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
        return total + self._touch_spans() if modality == "text" else total

    def _touch_spans(self) -> Tensor | float:
        """Return a number that depends on all weights of the span head, if there is one."""
        return 0.0 if self.spans is None else self.spans(self.spans.weight.new_zeros(1, self.spans.in_features)).sum()
