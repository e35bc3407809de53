"""What a rank needs of memory: state by arithmetic, activations by a forward pass that computes nothing.

State is what DeepSpeed 0.19 and DDP hold when weights are float32 and the optimizer is AdamW; ``benchmarks/rank_state.py``
measures the same on real ranks.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate as accumulate_sum
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vigil_data.items import Modality
from vigil_data.loading.batch import Batch, Segments
from vigil_modeling.safety_model import SafetyModel
from vigil_training.recipe.recipe import Recipe

Sharding = Literal["ddp", 1, 2, 3]
"""``ddp`` (also for a single process), or a stage of ZeRO."""

FLOAT32 = 4
ALIGNMENT = 2
"""Stages 1 and 2 pad a group of weights to a multiple of so many elements on each rank (``nccl_start_alignment_factor``)."""


@dataclass(frozen=True, slots=True)
class StateBytes:
    """Bytes of state on the rank that holds most.

    Attributes:
        weights: that layers compute with, frozen ones included.
        gradients: of trained weights, as kept for the optimizer step.
        optimizer: AdamW's two moments.
        masters: the copy that ZeRO steps, which DeepSpeed makes though weights are float32 already.
    """

    weights: int
    gradients: int
    optimizer: int
    masters: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.masters

    def __add__(self, other: "StateBytes") -> "StateBytes":
        """Of two groups of weights together."""
        return StateBytes(
            self.weights + other.weights,
            self.gradients + other.gradients,
            self.optimizer + other.optimizer,
            self.masters + other.masters,
        )


def state_bytes(parameters: Sequence[tuple[int, bool]], strategy: Sharding, world: int) -> StateBytes:
    """State of one rank (Rajbhandari et al. 2020, section 5, for weights in float32).

    Args:
        parameters: elements of each weight, and whether it is trained; in the optimizer's order. Of several of its groups each
            is shared out by itself: add up their states.
        strategy: how state is shared out.
        world: ranks.

    Raises:
        ValueError: if there is no rank.
    """
    if world < 1:
        raise ValueError(f"world is {world}, and must be at least 1")
    trained = sum(numel for numel, is_trained in parameters if is_trained)
    frozen = sum(numel for numel, is_trained in parameters if not is_trained)
    if strategy == "ddp":
        return StateBytes(FLOAT32 * (trained + frozen), FLOAT32 * trained, 2 * FLOAT32 * trained)
    if strategy == 3:
        # Each weight is cut by itself.
        part = sum(_ceil(numel, world) for numel, is_trained in parameters if is_trained)
        rest = sum(_ceil(numel, world) for numel, is_trained in parameters if not is_trained)
        return StateBytes(FLOAT32 * (part + rest), FLOAT32 * part, 2 * FLOAT32 * part, FLOAT32 * part)
    part = ALIGNMENT * _ceil(trained, ALIGNMENT * world)
    gradients = _gradients_touched([numel for numel, is_trained in parameters if is_trained], part, world)
    return StateBytes(FLOAT32 * (part * world + frozen), FLOAT32 * gradients, 2 * FLOAT32 * part, FLOAT32 * part)


def _gradients_touched(numels: Sequence[int], part: int, world: int) -> int:
    """Elements of the gradients that the busiest rank keeps in stages 1 and 2: whole ones also of weights that a border cuts."""
    ends = list(accumulate_sum(numels))
    most = part
    for rank in range(world):
        first, last = bisect_right(ends, rank * part), bisect_left(ends, (rank + 1) * part)
        if first < len(ends):
            padding = max((rank + 1) * part - ends[-1], 0)
            most = max(most, sum(numels[first : last + 1]) + padding)
    return most


def persistent_bytes(numels: Iterable[int], threshold: int, most: int) -> int:
    """Bytes of the small weights that ZeRO-3 keeps whole on every rank, beside its part of them.

    Args:
        numels: elements of each weight, in the model's order.
        threshold: ``stage3_param_persistence_threshold``.
        most: ``stage3_model_persistence_threshold``, elements in all.
    """
    kept = 0
    for numel in numels:
        if numel <= threshold and kept + numel <= most:
            kept += numel
    return FLOAT32 * kept


def buffer_bytes(
    parameters: Sequence[tuple[int, bool]], state: StateBytes, strategy: Sharding, zero: dict[str, Any], accumulate: int = 1
) -> dict[str, int]:
    """What a rank needs beside its state, by name: an upper allowance for what exists for a while.

    Args:
        parameters: elements of each weight, and whether it is trained, in the model's order.
        state: of this rank, all groups together.
        strategy: how state is shared out.
        zero: ``zero_optimization`` of DeepSpeed's configuration; unused for ``ddp``.
        accumulate: batches of an optimizer step.
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
            "weights kept whole": persistent_bytes((numel for numel, _ in parameters), threshold, most),
        }
    return {
        "reduce buckets": (2 if zero.get("overlap_comm", False) else 1) * bucket,
        "further gradients": _further_gradients(
            [n for n, is_trained in parameters if is_trained], state, strategy, zero, accumulate
        ),
    }


def _further_gradients(numels: Sequence[int], state: StateBytes, stage: Sharding, zero: dict[str, Any], accumulate: int) -> int:
    """Bytes of gradients in stages 1 and 2 beside those kept for the step: the most of what there is at different times.

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
class Activations:
    """What a forward pass keeps for the backward pass.

    Attributes:
        bytes: of tensors saved for the backward pass, each memory once, weights and buffers excluded.
        how: on what it was found, in words.
    """

    bytes: int
    how: str


def build_abstract(recipe: Recipe, assemble: Callable[[Recipe, bool], SafetyModel]) -> tuple[SafetyModel, str]:
    """The recipe's model without memory for its weights, and a note (empty if it could be built so)."""
    try:
        with torch.device("meta"):
            return assemble(recipe, False), ""
    except (NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        return assemble(recipe, False), f"the model was built in the CPU's memory, as it cannot be built without ({reason})"


def measure_activations(model: SafetyModel, batch: Batch, precision: str, touch_all: bool = False) -> Activations:
    """Run a forward pass and add up what it saves.

    On tensors that have shape and no memory if the model allows it, else on the CPU. The model is not to be used afterwards.

    Args:
        model: as :func:`build_abstract` gives it, activation checkpointing set up.
        batch: on the CPU; only its shapes count.
        precision: ``fp32`` or ``bf16`` (autocast).
        touch_all: as for :meth:`SafetyModel.forward`; so it is where there are several ranks.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            _refill(model, lambda t: torch.empty(t.shape, dtype=t.dtype, device="cpu"))
            fake = Batch(
                batch.ids, {m: s.map(mode.from_tensor) for m, s in batch.segments.items()}, mode.from_tensor(batch.targets)
            )
            return Activations(_saved_bytes(model, fake, precision, touch_all), "on tensors without memory")
    except Exception as error:  # what a library raises where a value would decide a shape is of no one kind
        _refill(model, lambda t: torch.zeros(t.shape, dtype=t.dtype))
        how = f"on the CPU with zero weights, as it could not be done without memory ({type(error).__name__})"
        return Activations(_saved_bytes(model, batch, precision, touch_all), how)


def blank_batch(model: SafetyModel, segments: dict[Modality, int], max_tokens: int, labels: int) -> Batch:
    """A batch of blank segments, one to an item: for planning without a dataset."""
    made: dict[Modality, Segments] = {}
    for modality, count in segments.items():
        inputs = {}
        for name, tensor in model.encoder(modality).blank().items():
            shape = [count, *tensor.shape[1:]] if modality != "text" else [count, max_tokens]
            inputs[name] = torch.ones(shape, dtype=tensor.dtype)
        made[modality] = Segments(torch.arange(count), inputs)
    items = max(segments.values())
    return Batch(tuple(str(i) for i in range(items)), made, torch.zeros(items, labels))


def _saved_bytes(model: SafetyModel, batch: Batch, precision: str, touch_all: bool) -> int:
    own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    saved: dict[int, Tensor] = {}  # Holds the tensors, so that no storage is freed and its address used again.

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            saved.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    model.train()
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
    with autocast, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        prediction = model(batch, touch_all=touch_all)
    total = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    del prediction
    return total


def _refill(model: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Put new tensors in the place of all parameters and buffers; what is tied stays tied."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                new = made.setdefault(id(parameter), nn.Parameter(make(parameter), parameter.requires_grad))
                module._parameters[name] = new
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = made.setdefault(id(buffer), make(buffer))


def _ceil(numel: int, parts: int) -> int:
    return -(-numel // parts)
