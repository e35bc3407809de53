"""Weights and AdamW's state as DeepSpeed's ZeRO holds them on this rank: to save, to load and to measure.

Stages 1 and 2 flatten each parameter group, cut it into equal parts and give each rank a float32 copy of one, so a parameter
may span several parts. (DeepSpeed's own map of that, ``_hp_mapping``, is wrong with ``round_robin_gradients``.) Stage 3 cuts
every parameter into equal parts, the last ones padded; the float32 copies of a rank's parts are concatenated for each
sub-group, in order.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vigil_training.checkpoint.reader import CheckpointReader
from vigil_training.checkpoint.shards import Fragment, FragmentKind, full_shape
from vigil_training.distributed.strategies.deepspeed_internals import is_stage_3, swapped_in, update_compute_weights

MOMENTS: tuple[FragmentKind, ...] = ("exp_avg", "exp_avg_sq")
"""AdamW's state of each element."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Piece of a trained parameter that this rank updates.

    Attributes:
        name: name of the parameter.
        shape: shape of the full parameter.
        start: first element of the piece in the flattened parameter.
        count: number of elements; 0 if this rank has only padding.
        offset: first element of the piece in the flat tensor of its group.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    count: int
    offset: int


def fragments(optimizer: Any, model: nn.Module) -> Iterator[Fragment]:
    """Yield this rank's fragments; over all ranks each element of each tensor occurs once.

    Args:
        optimizer: DeepSpeed's ZeRO optimizer.
        model: its ``state_dict()`` names the tensors.
    """
    for name, tensor in _untrained(model):
        start, values = _part(tensor)
        if values.numel():
            yield Fragment("weight", name, full_shape(tensor), start, values)
    for index, group in enumerate(_groups(optimizer, model)):
        with swapped_in(optimizer, index) as keep:
            flat = _flat(optimizer, index)
            state = optimizer.optimizer.state.get(flat, {})
            for piece in group:
                if not piece.count:
                    continue
                for kind, source in (("weight", flat), *((k, state[k]) for k in MOMENTS if k in state)):
                    values = keep(source.detach().narrow(0, piece.offset, piece.count))
                    yield Fragment(kind, piece.name, piece.shape, piece.start, values)
                if piece.start == 0 and "step" in state:
                    yield Fragment("step", piece.name, (), 0, keep(torch.as_tensor(state["step"]).reshape(1)))


def load_fragments(optimizer: Any, model: nn.Module, reader: CheckpointReader) -> None:
    """Load weights, buffers, AdamW's state and the weights that layers compute with, on all ranks together.

    Args:
        optimizer: DeepSpeed's ZeRO optimizer.
        model: its ``state_dict()`` names the tensors.
        reader: reader of a checkpoint of any strategy and any number of ranks.
    """
    for name, tensor in _untrained(model):
        if hasattr(tensor, "ds_tensor"):
            start, values = _part(tensor)
            if values.numel():
                values.copy_(reader.read_range("weight", name, start, values.numel()))
        else:
            tensor.data.copy_(reader.read_range("weight", name, 0, tensor.numel()).reshape(tensor.shape))
    for index, group in enumerate(_groups(optimizer, model)):
        with swapped_in(optimizer, index, changed=True):
            _fill(optimizer, _flat(optimizer, index), group, reader)
    update_compute_weights(optimizer)


def _fill(optimizer: Any, flat: Tensor, group: list[_Piece], reader: CheckpointReader) -> None:
    """Load the float32 weights of a group and their AdamW state; padding is zero."""
    flat.data.zero_()
    stepped = [piece for piece in group if reader.has("exp_avg", piece.name)]
    state = {kind: torch.zeros_like(flat, requires_grad=False) for kind in MOMENTS}
    for piece in group:
        if piece.count:
            here = slice(piece.offset, piece.offset + piece.count)
            flat.data[here].copy_(reader.read_range("weight", piece.name, piece.start, piece.count))
            for kind in MOMENTS if piece in stepped else ():
                state[kind][here].copy_(reader.read_range(kind, piece.name, piece.start, piece.count))
    optimizer.optimizer.state.pop(flat, None)
    if stepped:
        # A float32 tensor on the weights' device, as torch's fused AdamW requires.
        step = reader.read_range("step", stepped[0].name, 0, 1).reshape(()).to(flat.device, torch.float32, copy=True)
        optimizer.optimizer.state[flat] = {"step": step, **state}


def flat_weights(optimizer: Any, model: nn.Module) -> list[Tensor]:
    """Return the flat tensors of float32 weights that this rank updates, one for each group; not for NVMe offloading."""
    return [_flat(optimizer, index).detach() for index in range(len(_groups(optimizer, model)))]


def flat_fragments(optimizer: Any, model: nn.Module, kind: FragmentKind, tensors: Sequence[Tensor]) -> Iterator[Fragment]:
    """Yield this rank's fragments of tensors that are shaped like :func:`flat_weights`."""
    for group, flat in zip(_groups(optimizer, model), tensors, strict=True):
        for piece in group:
            if piece.count:
                values = flat.narrow(0, piece.offset, piece.count)
                yield Fragment(kind, piece.name, piece.shape, piece.start, values)


def read_flat(optimizer: Any, model: nn.Module, kind: FragmentKind, reader: CheckpointReader) -> list[Tensor]:
    """Read tensors of a kind in the shapes of :func:`flat_weights`; padding is zero."""
    tensors = [torch.zeros_like(flat) for flat in flat_weights(optimizer, model)]
    for group, flat in zip(_groups(optimizer, model), tensors, strict=True):
        for piece in group:
            if piece.count:
                values = reader.read_range(kind, piece.name, piece.start, piece.count)
                flat.narrow(0, piece.offset, piece.count).copy_(values)
    return tensors


def restart_step_count(optimizer: Any, model: nn.Module, names: Collection[str]) -> None:
    """Set AdamW's step count of the groups of parameters to 0."""
    for index, group in enumerate(_groups(optimizer, model)):
        if group[0].name in names:
            with swapped_in(optimizer, index, changed=True):
                state = optimizer.optimizer.state.get(_flat(optimizer, index), {})
                if "step" in state:
                    state["step"].zero_()


def _groups(optimizer: Any, model: nn.Module) -> list[list[_Piece]]:
    """Return this rank's pieces in each flat tensor of float32 weights."""
    names: dict[int, str] = {}
    for name, parameter in model.state_dict(keep_vars=True).items():
        names.setdefault(id(parameter), name)
    if is_stage_3(optimizer):
        return [[_stage_3_piece(optimizer, p, names[id(p)]) for p in group] for group in optimizer.fp16_groups]
    groups: list[list[_Piece]] = []
    for index, group in enumerate(optimizer.round_robin_bit16_groups):
        size = int(optimizer.partition_size[index])
        begin = size * dist.get_rank(optimizer.real_dp_process_group[index])
        pieces = []
        for parameter, offset in zip(group, optimizer.round_robin_bit16_offsets[index], strict=True):
            start = min(max(begin - offset, 0), parameter.numel())
            stop = min(max(begin + size - offset, 0), parameter.numel())
            pieces.append(_Piece(names[id(parameter)], full_shape(parameter), start, stop - start, offset + start - begin))
        groups.append(pieces)
    return groups


def _stage_3_piece(optimizer: Any, parameter: Any, name: str) -> _Piece:
    """Return the piece of a parameter that this rank updates in stage 3."""
    _, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start, count = _bounds(parameter, length)
    return _Piece(name, full_shape(parameter), start, count, offset)


def _flat(optimizer: Any, index: int) -> Tensor:
    """Return the float32 weights of a group that this rank updates, one-dimensional."""
    flats = optimizer.fp32_partitioned_groups_flat if is_stage_3(optimizer) else optimizer.single_partition_of_fp32_groups
    flat: Tensor = flats[index]
    return flat


def _untrained(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield frozen parameters and buffers, each under its first name."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and not tensor.requires_grad:
            seen.add(id(tensor))
            yield name, tensor


def _part(tensor: Tensor) -> tuple[int, Tensor]:
    """Return the first element and the values of the part of an untrained tensor that this rank saves."""
    if not hasattr(tensor, "ds_tensor"):
        return 0, tensor.detach().reshape(-1)[: None if dist.get_rank() == 0 else 0]
    start, count = _bounds(tensor, tensor.ds_tensor.ds_numel)
    return start, tensor.ds_tensor.detach()[:count]


def _bounds(parameter: Any, length: int) -> tuple[int, int]:
    """Return the first element and the number of elements of this rank's part in stage 3, without padding."""
    start = min(length * dist.get_rank(parameter.ds_process_group), parameter.ds_numel)
    return start, min(length, parameter.ds_numel - start)


def allocated_bytes(optimizer: Any, module: nn.Module) -> dict[str, int]:
    """Return the bytes of tensors allocated on this rank, those that share memory counted once.

    Call it after a backward pass for ``gradients``, and after an optimizer step for ``optimizer``.

    Returns:
        ``weights``: weights that layers compute with, and buffers; ``masters``: float32 copies that are updated; ``optimizer``:
        AdamW's state; ``gradients``: gradients kept for the step; ``buckets``: reduction buffers that stay allocated.
    """
    seen: set[int] = set()
    weights = [p.data for p in module.parameters()] + [p.ds_tensor for p in module.parameters() if hasattr(p, "ds_tensor")]
    flats = [_flat(optimizer, i) for i in range(len(optimizer.fp16_groups if is_stage_3(optimizer) else optimizer.bit16_groups))]
    state = [value for values in optimizer.optimizer.state.values() for value in values.values() if torch.is_tensor(value)]
    gradients = [p.grad for p in [*module.parameters(), *flats]]
    gradients += [g for group in optimizer.averaged_gradients.values() for g in group or ()]
    gradients += [
        getattr(optimizer, "grad_partitions_flat_buffer", None),
        *getattr(optimizer, "accumulated_grads_in_cpu", {}).values(),
    ]
    buckets = [b for bucket in optimizer.ipg_buckets.values() for b in _tensors(bucket.buffer)]
    return {
        "weights": _bytes([*weights, *module.buffers(), *getattr(optimizer, "param_groups_fp16_flat_cpu_memory", ())], seen),
        "masters": _bytes(flats, seen),
        "optimizer": _bytes(state, seen),
        "buckets": _bytes(buckets, seen),
        "gradients": _bytes(gradients, seen),
    }


def _tensors(value: Any) -> list[Tensor]:
    return [value] if torch.is_tensor(value) else list(value or ())


def _bytes(tensors: Iterable[Tensor | None], seen: set[int]) -> int:
    total = 0
    for tensor in tensors:
        if tensor is not None and (storage := tensor.untyped_storage()).data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total
