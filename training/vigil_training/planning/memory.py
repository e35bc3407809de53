"""Memory of a rank: state by arithmetic, activations by a forward pass that computes nothing.

State is what DeepSpeed 0.19, DDP and FSDP2 hold when weights are float32 and the optimizer is AdamW; ``benchmarks/rank_state.py``
measures the same on real ranks.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate as accumulate_sum
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vigil_data.items import Modality
from vigil_data.loading.batch import Batch, Segments
from vigil_modeling.multimodal_model import MultimodalModel
from vigil_training.planning.torch_internals import FakeTensorMode, storage_key
from vigil_training.pretraining.model import build_recipe_model
from vigil_training.recipe.recipe import Recipe

Sharding = Literal["ddp", 1, 2, 3]
"""``ddp`` (also for a single process), or a stage of ZeRO."""

FLOAT32 = 4
ALIGNMENT = 2
"""Stages 1 and 2 pad a group of weights to a multiple of so many elements on each rank (``nccl_start_alignment_factor``)."""


@dataclass(frozen=True, slots=True)
class StateBytes:
    """Bytes of state on the rank with the most.

    Attributes:
        weights: weights that layers compute with, frozen ones included.
        gradients: gradients kept for the optimizer step.
        optimizer: AdamW's two moments.
        masters: copy of the weights that ZeRO steps, which DeepSpeed makes although weights are float32 already.
        average: moving average of the trained weights (``training.ema``).
    """

    weights: int
    gradients: int
    optimizer: int
    masters: int = 0
    average: int = 0

    @property
    def total(self) -> int:
        """Sum of all."""
        return self.weights + self.gradients + self.optimizer + self.masters + self.average

    def __add__(self, other: "StateBytes") -> "StateBytes":
        """Add the states of two groups of weights."""
        return StateBytes(
            self.weights + other.weights,
            self.gradients + other.gradients,
            self.optimizer + other.optimizer,
            self.masters + other.masters,
            self.average + other.average,
        )


def state_bytes(parameters: Sequence[tuple[int, bool]], strategy: Sharding, world: int, averaged: bool = False) -> StateBytes:
    """Return the state of one rank (Rajbhandari et al. 2020, section 5, for weights in float32).

    Args:
        parameters: number of elements of each weight and whether it is trained, in the optimizer's order. Its groups are sharded
            separately: add up their states.
        strategy: how state is sharded.
        world: number of ranks.
        averaged: whether a moving average of the trained weights is kept, sharded like the optimizer's state.

    Raises:
        ValueError: if ``world`` is less than 1.
    """
    if world < 1:
        raise ValueError(f"world is {world}, but must be at least 1")
    trained = sum(numel for numel, is_trained in parameters if is_trained)
    frozen = sum(numel for numel, is_trained in parameters if not is_trained)
    if strategy == "ddp":
        average = FLOAT32 * trained * averaged
        return StateBytes(FLOAT32 * (trained + frozen), FLOAT32 * trained, 2 * FLOAT32 * trained, average=average)
    if strategy == 3:
        # Each weight is cut by itself.
        part = sum(_ceil(numel, world) for numel, is_trained in parameters if is_trained)
        rest = sum(_ceil(numel, world) for numel, is_trained in parameters if not is_trained)
        average = FLOAT32 * part * averaged
        return StateBytes(FLOAT32 * (part + rest), FLOAT32 * part, 2 * FLOAT32 * part, FLOAT32 * part, average)
    part = ALIGNMENT * _ceil(trained, ALIGNMENT * world)
    gradients = _gradients_touched([numel for numel, is_trained in parameters if is_trained], part, world)
    average = FLOAT32 * part * averaged
    return StateBytes(FLOAT32 * (part * world + frozen), FLOAT32 * gradients, 2 * FLOAT32 * part, FLOAT32 * part, average)


def _gradients_touched(numels: Sequence[int], part: int, world: int) -> int:
    """Gradient elements of the rank with the most, in stages 1 and 2: weights that a border cuts count on both sides."""
    ends = list(accumulate_sum(numels))
    most = part
    for rank in range(world):
        first, last = bisect_right(ends, rank * part), bisect_left(ends, (rank + 1) * part)
        if first < len(ends):
            padding = max((rank + 1) * part - ends[-1], 0)
            most = max(most, sum(numels[first : last + 1]) + padding)
    return most


def persistent_bytes(numels: Iterable[int], threshold: int, most: int) -> int:
    """Return the bytes of small weights that ZeRO-3 keeps unsharded on every rank, in addition to the rank's shard.

    Args:
        numels: number of elements of each weight, in the model's order.
        threshold: ``stage3_param_persistence_threshold``.
        most: ``stage3_model_persistence_threshold``, elements in all.
    """
    kept = 0
    for numel in numels:
        if numel <= threshold and kept + numel <= most:
            kept += numel
    return FLOAT32 * kept


def sharded(shapes: Iterable[tuple[tuple[int, ...], bool]], world: int) -> list[tuple[int, bool]]:
    """Return the largest shard of each weight under FSDP2, in elements, and whether it is trained.

    Its state is that of ``ddp`` for a model of these shards: each weight is cut by its first dimension, and the first rank has
    the most rows.

    Args:
        shapes: shape of each weight, and whether it is trained.
        world: number of ranks.
    """
    return [(_ceil(shape[0], world) * math.prod(shape[1:]) if shape else 1, trained) for shape, trained in shapes]


def gathered_bytes(units: Sequence[tuple[int, int]]) -> dict[str, int]:
    """Return the buffers of FSDP2 in addition to a rank's state, by name: an upper bound.

    The rest of the model is gathered first and freed last. Of the other units one computes and the next is gathered, into a flat
    buffer that is then copied. Gradients of a unit are copied into a flat buffer, while those of the unit before are reduced.

    Args:
        units: elements of each unit, and how many of them are trained; the rest of the model last.
    """
    *inner, rest = units
    weights, trained = (max((unit[i] for unit in inner), default=0) for i in (0, 1))
    return {"gathered weights": FLOAT32 * (rest[0] + 3 * weights), "unsharded gradients": FLOAT32 * (2 * rest[1] + 3 * trained)}


def buffer_bytes(
    parameters: Sequence[tuple[int, bool]], state: StateBytes, strategy: Sharding, zero: dict[str, Any], accumulate: int = 1
) -> dict[str, int]:
    """Return the memory that a rank needs in addition to its state, by name: an upper bound for temporary buffers.

    Args:
        parameters: elements of each weight, and whether it is trained, in the model's order.
        state: state of this rank, all groups together.
        strategy: how state is sharded.
        zero: ``zero_optimization`` of DeepSpeed's configuration; unused for ``ddp``.
        accumulate: batches of each optimizer step.
    """
    if strategy == "ddp":
        return {}  # Gradients are views of the buckets in which they are reduced.
    bucket = FLOAT32 * int(zero["reduce_bucket_size"])
    if strategy == 3:
        largest = FLOAT32 * max((numel for numel, _ in parameters), default=0)
        threshold, most = (int(zero[f"stage3_{of}_persistence_threshold"]) for of in ("param", "model"))
        return {
            "reduce buckets": 2 * bucket,  # one that gradients are put into, one that they are reduced from
            "gathered weights": FLOAT32 * int(zero["stage3_max_live_parameters"]) + largest,
            "unsharded weights": persistent_bytes((numel for numel, _ in parameters), threshold, most),
        }
    return {
        "reduce buckets": (2 if zero.get("overlap_comm", False) else 1) * bucket,
        "further gradients": _further_gradients(
            [n for n, is_trained in parameters if is_trained], state, strategy, zero, accumulate
        ),
    }


def _further_gradients(numels: Sequence[int], state: StateBytes, stage: Sharding, zero: dict[str, Any], accumulate: int) -> int:
    """Bytes of gradients in stages 1 and 2 in addition to those kept for the step: the maximum over time.

    Args:
        numels: elements of each trained weight.
        state: of this rank, all groups together.
        stage: 1 or 2.
        zero: ``zero_optimization`` of DeepSpeed's configuration.
        accumulate: batches of an optimizer step.
    """
    joined, trained = state.masters, FLOAT32 * sum(numels)  # For the step, a group's gradients are copied into one tensor.
    if accumulate > 1:
        # Stage 1 reduces them with the last batch of a step alone; stage 2 adds those of a batch to those of the ones before.
        return max(joined, trained if stage == 1 else state.gradients)
    if stage == 1:
        # Other ranks' gradients live in the bucket; those that are too large for it are freed at the end of backward alone.
        large = FLOAT32 * sum(numel for numel in numels if numel > int(zero["reduce_bucket_size"]))
        return max(joined, min(large, trained - joined))
    return joined


@dataclass(frozen=True, slots=True)
class ActivationEstimate:
    """Memory that a forward pass keeps for the backward pass.

    Attributes:
        bytes: bytes of saved tensors, shared memory counted once, weights and buffers excluded.
        how: how it was measured, for the user.
    """

    bytes: int
    how: str


def build_abstract(recipe: Recipe) -> tuple[MultimodalModel, str]:
    """Build the recipe's model without memory for its weights, and a note, empty if that was possible."""

    def build() -> MultimodalModel:
        return build_recipe_model(recipe, pretrained=False)

    try:
        with torch.device("meta"):
            return build(), ""
    except (NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        return build(), f"the model was built in CPU memory, as it cannot be built without ({reason})"


def measure_activations(model: MultimodalModel, batch: Batch, precision: str, touch_all: bool = False) -> ActivationEstimate:
    """Run a forward pass and add up the tensors that it saves.

    It runs on tensors without memory if the model allows it, else on the CPU. The model cannot be used afterwards.

    Args:
        model: from :func:`build_abstract`, with activation checkpointing set up.
        batch: on the CPU; only its shapes count.
        precision: ``fp32`` or ``bf16`` (autocast).
        touch_all: see :meth:`MultimodalModel.forward`; true with several ranks.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            replace_tensors(model, lambda t: torch.empty(t.shape, dtype=t.dtype, device="cpu"))
            fake = model.map_values(batch, mode.from_tensor)
            return ActivationEstimate(_saved_bytes(model, fake, precision, touch_all), "on tensors without memory")
    except Exception as error:  # libraries raise various errors where a value decides a shape
        replace_tensors(model, lambda t: torch.zeros(t.shape, dtype=t.dtype))
        how = f"on the CPU with zero weights, as it could not be done without memory ({type(error).__name__})"
        return ActivationEstimate(_saved_bytes(model, batch, precision, touch_all), how)


def blank_batch(model: MultimodalModel, segments: dict[Modality, int], max_tokens: int, labels: int) -> Batch:
    """Return a batch of blank segments, one for each item, to plan without a dataset."""
    made: dict[Modality, Segments] = {}
    for modality, count in segments.items():
        inputs = {}
        for name, tensor in model.encoder(modality).blank().items():
            shape = [count, *tensor.shape[1:]] if modality != "text" else [count, max_tokens]
            inputs[name] = torch.ones(shape, dtype=tensor.dtype)
        made[modality] = Segments(torch.arange(count), inputs, torch.zeros(count, dtype=torch.int64), torch.zeros(count, 2))
    items = max(segments.values())
    return Batch(tuple(str(i) for i in range(items)), made, torch.zeros(items, labels))


def _saved_bytes(model: MultimodalModel, batch: Batch, precision: str, touch_all: bool) -> int:
    own = {storage_key(t) for t in [*model.parameters(), *model.buffers()]}
    saved: dict[int, Tensor] = {}  # Holds the tensors, so that no storage is freed and its address used again.

    def pack(tensor: Tensor) -> Tensor:
        if storage_key(tensor) not in own:
            saved.setdefault(storage_key(tensor), tensor)
        return tensor

    model.train()
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
    with autocast, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        prediction = model(batch, touch_all=touch_all)
    total = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    del prediction
    return total


def replace_tensors(model: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Replace all parameters and buffers by new tensors; tied ones stay tied."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            setattr(module, name, made.setdefault(id(parameter), nn.Parameter(make(parameter), parameter.requires_grad)))
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            setattr(module, name, made.setdefault(id(buffer), make(buffer)))


def _ceil(numel: int, parts: int) -> int:
    return -(-numel // parts)
