"""Floating-point operations of training steps, and what GPUs can do at most, for ``train/tflops`` and ``train/mfu``.

The operations of one segment and one item are counted once, before training, in a forward and backward pass without memory
(``torch.utils.flop_counter``); those of a batch follow from its shapes, which costs nothing in a step. Of a guard, those of a row
of prompts are counted, and of a batch, the rows that its forward pass has assembled.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vigil_data.items import Modality
from vigil_data.loading.batch import TOKENS, Batch
from vigil_modeling.guards.guard_model import ROW_MULTIPLE, GuardModel
from vigil_modeling.multimodal_model import MultimodalModel
from vigil_modeling.safety_model import SafetyModel
from vigil_training.planning.memory import build_abstract, replace_tensors
from vigil_training.planning.torch_internals import FakeTensorMode
from vigil_training.recipe.recipe import Recipe

log = logging.getLogger("vigil.train")

PEAK_TFLOPS: Mapping[str, tuple[float, float | None]] = {
    "H200": (67.0, 989.0),
    "H100 NVL": (60.0, 835.0),
    "H100 PCIe": (51.0, 756.0),
    "H100": (67.0, 989.0),
    "A100": (19.5, 312.0),
    "A30": (10.3, 165.0),
    "L40S": (91.6, 362.0),
    "L4": (30.3, 121.0),
    "A10": (31.2, 125.0),
    "V100": (15.7, None),
    "T4": (8.1, None),
}
"""Words in the name of a GPU to TFLOP/s in fp32 and in bf16 on tensor cores without sparsity, from NVIDIA's data sheets of each
product. V100 and T4 have no bf16 tensor cores. fp32 is that without TF32, which torch uses in convolutions alone."""


def peak_flops(gpu: str, precision: str) -> float | None:
    """Return the most FLOP/s that a GPU reaches in a precision; ``None`` if that is not known.

    Args:
        gpu: name of the GPU, as torch reports it, such as ``NVIDIA H100 80GB HBM3``.
        precision: ``fp32`` or ``bf16``.
    """
    words = gpu.replace("-", " ").split()
    for name, (fp32, bf16) in PEAK_TFLOPS.items():
        if all(part in words for part in name.split()):
            peak = bf16 if precision == "bf16" else fp32
            return None if peak is None else 1e12 * peak
    return None


@dataclass(frozen=True)
class FlopEstimate:
    """Operations of a forward and backward pass, as polynomials.

    Recomputed activations are not counted, as in model FLOPs utilization (Chowdhery et al. 2022, "PaLM", appendix B).

    Attributes:
        segment: modality to the coefficients of one segment's operations, highest power first, in the length of its input (text:
            tokens); a constant for images and windows of audio.
        tokens: modality to the tokens of one segment that are fused.
        item: coefficients of one item's operations in fusion and heads, in its number of tokens; 0 of a guard.
        row: coefficients of the operations of one row of a guard's prompts, in its length.
    """

    segment: Mapping[Modality, tuple[float, ...]]
    tokens: Mapping[Modality, int]
    item: tuple[float, ...]
    row: tuple[float, ...] = ()

    def of(self, batch: Batch, rows: tuple[int, int] = (0, 0)) -> float:
        """Return the operations of a batch; fusion's are those of items that have the mean number of tokens each.

        Args:
            batch: its shapes count.
            rows: number and length of the rows of its prompts, see :attr:`.MultimodalModel.prompt_rows`.
        """
        total, tokens = rows[0] * float(np.polyval(self.row, rows[1])), 0
        for modality, coefficients in self.segment.items():
            if modality in batch.segments:
                inputs = batch.segments[modality].inputs
                shape = next(iter(inputs.values())).shape
                if TOKENS not in inputs:  # Tokens of a frozen encoder may be cached.
                    total += shape[0] * float(np.polyval(coefficients, shape[-1]))
                tokens += shape[0] * self.tokens[modality]
        return total + len(batch) * float(np.polyval(self.item, tokens / len(batch))) if len(batch) else total


def estimate_flops(recipe: Recipe) -> FlopEstimate | None:
    """Count the operations of a recipe's model; ``None``, and a line in the log, if it cannot run without memory."""
    try:
        model, _ = build_abstract(recipe)
        with FakeTensorMode(allow_non_fake_inputs=True):
            replace_tensors(model, lambda t: torch.empty(t.shape, dtype=t.dtype, device="cpu"))
            segment, tokens = _count_encoders(model.train(), recipe)
            if isinstance(model, GuardModel):
                return FlopEstimate(segment, tokens, (0.0,), _count_rows(model))
        assert isinstance(model, SafetyModel)
        for name, part in model.named_children():
            if name not in ("encoders", "projections"):  # The layout of fusion depends on values.
                replace_tensors(part, lambda t: torch.zeros(t.shape, dtype=t.dtype))
        return FlopEstimate(segment, tokens, _count_fusion(model))
    except Exception as error:  # libraries raise various errors where a value decides a shape
        log.info("train/tflops is not logged: the model's operations cannot be counted (%s)", type(error).__name__)
        return None


def _count_encoders(model: MultimodalModel, recipe: Recipe) -> tuple[dict[Modality, tuple[float, ...]], dict[Modality, int]]:
    """Return the first two attributes of :class:`FlopEstimate`."""
    segment: dict[Modality, tuple[float, ...]] = {}
    tokens: dict[Modality, int] = {}
    for modality in model.modalities:
        if modality == "text" and isinstance(model, GuardModel):
            continue
        blank = {name: torch.empty(2, *t.shape[1:], dtype=t.dtype) for name, t in model.encoder(modality).blank().items()}
        lengths = [next(iter(blank.values())).shape[-1]]
        if modality == "text":
            assert recipe.inputs.text is not None
            lengths = _lengths(recipe.inputs.text.max_tokens)
            blank = {name: torch.empty(2, 1, dtype=t.dtype) for name, t in blank.items()}
        counts = []
        for length in lengths:
            inputs = {n: t.expand(2, length).clone() if modality == "text" else t for n, t in blank.items()}

            def encode(modality: Modality = modality, inputs: dict[str, Tensor] = inputs) -> Tensor:
                tokens_SPD = model.encode(modality, **inputs)
                tokens[modality] = tokens_SPD.shape[1]
                return tokens_SPD

            counts.append(_count(encode) / 2)
        segment[modality] = _fit(lengths, counts)
    return segment, tokens


def _count_rows(model: GuardModel) -> tuple[float, ...]:
    """Return ``row`` of :class:`FlopEstimate`, for rows of at most :data:`.ROW_MULTIPLE` blocks, as most have."""

    def answers(rows: Mapping[str, Tensor], soft_KD: Tensor | None) -> Tensor:
        return model.run_rows(rows, soft_KD, None)[0]

    lengths, counts = _lengths(model.pieces.row_tokens), []
    for length in lengths:
        ids_RT = torch.zeros(2, length, dtype=torch.int64)
        rows = dict.fromkeys(("input_ids", "soft", "position", "block", "segment"), ids_RT)
        rows |= {"answer_row": torch.arange(2), "answer_column": torch.full((2,), length - 1), "answer": torch.arange(2)}
        rows["sees"] = torch.ones(2, ROW_MULTIPLE, ROW_MULTIPLE, dtype=torch.bool)
        soft_KD = torch.zeros(1, model.width, requires_grad=True) if model.projections else None
        counts.append(_count(partial(answers, rows, soft_KD)) / 2)
    return _fit(lengths, counts)


def _lengths(longest: int) -> list[int]:
    """Return the lengths of text for which operations are counted."""
    return sorted({max(2, longest // 4), max(2, longest // 2), longest})


def _count_fusion(model: SafetyModel) -> tuple[float, ...]:
    """Return ``item`` of :class:`FlopEstimate`."""
    first, lengths, counts = model.modalities[0], [1, 2, 4], []
    for length in lengths:
        tokens_SPD = torch.zeros(2, length, model.width, requires_grad=True)
        prediction = partial(model.fuse, {first: tokens_SPD}, {first: {"item": torch.arange(2)}}, 2)
        counts.append(_count(lambda predict=prediction: predict().raw_NL) / 2)  # type: ignore[misc]
    return _fit(lengths, counts)


def _fit(lengths: list[int], counts: list[float]) -> tuple[float, ...]:
    """Return the polynomial through the points, at most quadratic, as attention is."""
    return tuple(float(c) for c in np.polyfit(lengths, counts, len(lengths) - 1))


def _count(forward: Callable[[], Tensor]) -> int:
    """Count the operations of a forward pass and, if anything in it is trained, its backward pass."""
    # Only this kernel is made of operations that the counter knows on every device.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = forward()
        if result.requires_grad:
            result.sum().backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops())
