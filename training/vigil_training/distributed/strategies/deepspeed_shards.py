"""Where DeepSpeed keeps weights and AdamW's state of this rank, as named pieces to save, to fill and to count.

Stages 1 and 2 flatten each parameter group, cut it into equal parts and give each rank a float32 copy of one: a parameter may
lie in several of them. (DeepSpeed's own map of that, ``_hp_mapping``, is wrong with ``round_robin_gradients``.) Stage 3 cuts
every parameter by itself into equal parts, the last ones padded; the float32 copies of a rank's parts are joined into one tensor
for each sub-group, in order.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vigil_training.checkpoint.shards import Fragment, FragmentKind, InventoryEntry

if TYPE_CHECKING:
    from vigil_training.checkpoint.reader import CheckpointReader

MOMENTS: tuple[FragmentKind, ...] = ("exp_avg", "exp_avg_sq")
"""AdamW's state of each element."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece of a trained parameter that this rank steps.

    Attributes:
        name: of the parameter.
        shape: of the whole parameter.
        start: the piece's first element in the flattened parameter.
        count: its elements; 0 where this rank has only padding.
        offset: its first element in the flat tensor of its group.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    count: int
    offset: int


def inventory(model: nn.Module) -> dict[str, InventoryEntry]:
    """Every parameter and buffer by its name in ``state_dict()``, with the shapes of whole tensors."""
    first: dict[int, str] = {}
    entries: dict[str, InventoryEntry] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        tied_to = first.setdefault(id(tensor), name)
        entries[name] = InventoryEntry(
            shape=_shape(tensor),
            dtype=str(tensor.dtype).removeprefix("torch."),
            trained=bool(tensor.requires_grad),
            buffer=not isinstance(tensor, nn.Parameter),
            tied_to=tied_to if tied_to != name else None,
        )
    return entries


def fragments(optimizer: Any, model: nn.Module) -> Iterator[Fragment]:
    """What this rank holds; over all ranks each element of each tensor once.

    Args:
        optimizer: DeepSpeed's ZeRO optimizer.
        model: whose ``state_dict()`` names the tensors.
    """
    for name, tensor in _untrained(model):
        start, values = _part(tensor)
        if values.numel():
            yield Fragment("weight", name, _shape(tensor), start, values)
    for index, group in enumerate(_groups(optimizer, model)):
        with _present(optimizer, index) as keep:
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


def load_fragments(optimizer: Any, model: nn.Module, reader: "CheckpointReader") -> None:
    """Fill all weights, buffers and AdamW's state, and the copies of weights that layers compute with, on all ranks together.

    Args:
        optimizer: DeepSpeed's ZeRO optimizer.
        model: whose ``state_dict()`` names the tensors.
        reader: of a checkpoint that any strategy with any number of ranks has written.
    """
    for name, tensor in _untrained(model):
        if hasattr(tensor, "ds_tensor"):
            start, values = _part(tensor)
            if values.numel():
                values.copy_(reader.read_range("weight", name, start, values.numel()))
        else:
            tensor.data.copy_(reader.read_range("weight", name, 0, tensor.numel()).reshape(tensor.shape))
    for index, group in enumerate(_groups(optimizer, model)):
        with _present(optimizer, index, changed=True):
            _fill(optimizer, _flat(optimizer, index), group, reader)
    _renew_copies(optimizer)


def _fill(optimizer: Any, flat: Tensor, group: list[_Piece], reader: "CheckpointReader") -> None:
    """Fill the float32 weights of a group and AdamW's state of them; padding is zero."""
    flat.data.zero_()
    begun = [piece for piece in group if reader.has("exp_avg", piece.name)]
    state = {kind: torch.zeros_like(flat, requires_grad=False) for kind in MOMENTS}
    for piece in group:
        if piece.count:
            here = slice(piece.offset, piece.offset + piece.count)
            flat.data[here].copy_(reader.read_range("weight", piece.name, piece.start, piece.count))
            for kind in MOMENTS if piece in begun else ():
                state[kind][here].copy_(reader.read_range(kind, piece.name, piece.start, piece.count))
    optimizer.optimizer.state.pop(flat, None)
    if begun:
        # Counted in a tensor beside the weights, as torch's fused AdamW wants it.
        step = reader.read_range("step", begun[0].name, 0, 1).reshape(()).to(flat.device, torch.float32, copy=True)
        optimizer.optimizer.state[flat] = {"step": step, **state}


@torch.no_grad()
def _renew_copies(optimizer: Any) -> None:
    """Make the weights that layers compute with equal to the float32 ones."""
    if not _is_stage_3(optimizer):
        optimizer._hp_optimizer_states_linked = False
        if all(flat in optimizer.optimizer.state for flat in optimizer.single_partition_of_fp32_groups):
            optimizer._lazy_init_hp_params_optimizer_state()
        optimizer.update_lp_params()
        return
    optimizer._partition_all_parameters()
    for index in range(len(optimizer.fp16_groups)):
        if not optimizer._swappable_optimizer_subgroup(index):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
    if optimizer.persistent_parameters:
        optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


@contextmanager
def _present(optimizer: Any, index: int, changed: bool = False) -> Iterator[Callable[[Tensor], Tensor]]:
    """Have a group's state in memory; gives what makes a tensor of it outlive the context.

    Args:
        optimizer: DeepSpeed's ZeRO optimizer.
        index: of the group.
        changed: whether it is to be written back to where it was.
    """
    if not (_is_stage_3(optimizer) and optimizer._swappable_optimizer_subgroup(index)):
        yield lambda tensor: tensor
        return
    optimizer._optimizer_states_and_gradient_swap_in(index)
    yield Tensor.clone
    if changed:
        optimizer._reassign_or_swap_out_partitioned_parameters(index)
        optimizer._optimizer_states_and_gradient_swap_out(index)
    else:
        optimizer._release_swap_buffers(index)


def _groups(optimizer: Any, model: nn.Module) -> list[list[_Piece]]:
    """The pieces of this rank in each flat tensor of float32 weights."""
    names: dict[int, str] = {}
    for name, parameter in model.state_dict(keep_vars=True).items():
        names.setdefault(id(parameter), name)
    if _is_stage_3(optimizer):
        return [[_cut_alone(optimizer, p, names[id(p)]) for p in group] for group in optimizer.fp16_groups]
    groups: list[list[_Piece]] = []
    for index, group in enumerate(optimizer.round_robin_bit16_groups):
        size = int(optimizer.partition_size[index])
        begin = size * dist.get_rank(optimizer.real_dp_process_group[index])
        pieces = []
        for parameter, place in zip(group, optimizer.round_robin_bit16_offsets[index], strict=True):
            start = min(max(begin - place, 0), parameter.numel())
            stop = min(max(begin + size - place, 0), parameter.numel())
            pieces.append(_Piece(names[id(parameter)], _shape(parameter), start, stop - start, place + start - begin))
        groups.append(pieces)
    return groups


def _cut_alone(optimizer: Any, parameter: Any, name: str) -> _Piece:
    """The piece of a parameter that this rank steps in stage 3."""
    _, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start, count = _bounds(parameter, length)
    return _Piece(name, _shape(parameter), start, count, offset)


def _flat(optimizer: Any, index: int) -> Tensor:
    """The float32 weights of a group that this rank steps, one-dimensional."""
    flats = optimizer.fp32_partitioned_groups_flat if _is_stage_3(optimizer) else optimizer.single_partition_of_fp32_groups
    flat: Tensor = flats[index]
    return flat


def _untrained(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Frozen parameters and buffers, each under its first name."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and not tensor.requires_grad:
            seen.add(id(tensor))
            yield name, tensor


def _part(tensor: Tensor) -> tuple[int, Tensor]:
    """The first element and the values of what this rank has to save of an untrained tensor."""
    if not hasattr(tensor, "ds_tensor"):
        return 0, tensor.detach().reshape(-1)[: None if dist.get_rank() == 0 else 0]
    start, count = _bounds(tensor, tensor.ds_tensor.ds_numel)
    return start, tensor.ds_tensor.detach()[:count]


def _bounds(parameter: Any, length: int) -> tuple[int, int]:
    """The first element and the number of elements of this rank's part in stage 3, without padding."""
    start = min(length * dist.get_rank(parameter.ds_process_group), parameter.ds_numel)
    return start, min(length, parameter.ds_numel - start)


def _shape(tensor: Any) -> tuple[int, ...]:
    """Of the whole tensor."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def _is_stage_3(optimizer: Any) -> bool:
    return hasattr(optimizer, "fp32_partitioned_groups_flat")


def held(optimizer: Any, module: nn.Module) -> dict[str, int]:
    """Bytes of the tensors that this rank has allocated, those that share memory counted once.

    To be called after a backward pass for ``gradients``, and after an optimizer step for ``optimizer``.

    Returns:
        ``weights``: that layers compute with, and buffers; ``masters``: the float32 copies that are stepped; ``optimizer``:
        AdamW's state; ``gradients``: as kept for the step; ``buckets``: in which gradients are reduced, as far as they stay.
    """
    seen: set[int] = set()
    stage_3 = _is_stage_3(optimizer)
    weights = [p.data for p in module.parameters()] + [p.ds_tensor for p in module.parameters() if hasattr(p, "ds_tensor")]
    flats = [_flat(optimizer, i) for i in range(len(optimizer.fp16_groups if stage_3 else optimizer.bit16_groups))]
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
