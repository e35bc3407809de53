"""Fragments: pieces of named tensors as a rank holds them, which is how every strategy's state is saved and found again.

One process holds whole tensors, ZeRO gives each rank a piece of each. Saved by name and place in the flattened tensor, a piece
can be read by any strategy with any number of ranks.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

FragmentKind = Literal["weight", "exp_avg", "exp_avg_sq", "step"]
"""``weight``: parameters and buffers, trained ones in float32 as the optimizer holds them; the rest is AdamW's state."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of a tensor.

    Attributes:
        kind: what the tensor is.
        name: of the parameter or buffer, as in ``SafetyModel.state_dict()``.
        shape: of the whole tensor.
        start: the first element of the piece in the flattened tensor.
        values: the piece, one-dimensional, on any device; not a copy, so it may change after the next optimizer step.
    """

    kind: FragmentKind
    name: str
    shape: tuple[int, ...]
    start: int
    values: Tensor


@dataclass(frozen=True, slots=True)
class InventoryEntry:
    """One entry of the inventory: what a checkpoint must hold of one parameter or buffer.

    Attributes:
        shape: of the whole tensor.
        dtype: as ``str(tensor.dtype)`` without ``torch.``.
        trained: whether the optimizer has state of it.
        buffer: whether it is a buffer.
        tied_to: the name under which the same tensor is stored, where two names share one.
    """

    shape: tuple[int, ...]
    dtype: str
    trained: bool
    buffer: bool
    tied_to: str | None = None
