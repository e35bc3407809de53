"""Fragments: pieces of named tensors as a rank holds them, the form in which every strategy saves its state.

A single process holds full tensors, ZeRO gives each rank a piece of each. A piece is saved with its name and its offset in the
flattened tensor, so any strategy with any number of ranks can read it.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

FragmentKind = Literal["weight", "average", "exp_avg", "exp_avg_sq", "step"]
"""``weight``: parameters and buffers, trained ones in float32 as the optimizer holds them; ``average``: moving averages of those
that change; the others are AdamW's state."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of a tensor.

    Attributes:
        kind: weight or optimizer state.
        name: name of the parameter or buffer in ``MultimodalModel.state_dict()``.
        shape: shape of the full tensor.
        start: first element of the piece in the flattened tensor.
        values: the piece, one-dimensional, on any device; not a copy, so it may change after the next optimizer step.
    """

    kind: FragmentKind
    name: str
    shape: tuple[int, ...]
    start: int
    values: Tensor


@dataclass(frozen=True, slots=True)
class InventoryEntry:
    """A parameter or buffer that a checkpoint must hold.

    Attributes:
        shape: shape of the full tensor.
        dtype: ``str(tensor.dtype)`` without ``torch.``.
        trained: whether the optimizer has state for it.
        buffer: whether it is a buffer.
        tied_to: name under which the tensor is stored, if two names share it.
    """

    shape: tuple[int, ...]
    dtype: str
    trained: bool
    buffer: bool
    tied_to: str | None = None


def inventory(model: nn.Module) -> dict[str, InventoryEntry]:
    """Return every parameter and buffer of a model, by its name in ``state_dict()``."""
    first: dict[int, str] = {}
    entries: dict[str, InventoryEntry] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        stored_as = first.setdefault(id(tensor), name)
        entries[name] = InventoryEntry(
            shape=full_shape(tensor),
            dtype=str(tensor.dtype).removeprefix("torch."),
            trained=bool(tensor.requires_grad),
            buffer=not isinstance(tensor, nn.Parameter),
            tied_to=stored_as if stored_as != name else None,
        )
    return entries


def full_shape(tensor: Any) -> tuple[int, ...]:
    """Return the shape of the full tensor; DeepSpeed keeps that of partitioned tensors in ``ds_shape``."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))
