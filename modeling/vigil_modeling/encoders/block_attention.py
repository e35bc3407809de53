"""Attention of decoders under a mask of blocks, several prompts to a row, and the packing of passages into such rows.

transformers passes a 4-D mask on as it is, but an architecture may then leave out its sliding window, and SDPA cannot cap logits.
So decoders attend through :func:`attend`, which transformers calls in every layer (``AttentionInterface``): it joins the mask
with the layer's window, in positions instead of columns, and refuses what it would have to ignore.
"""

from bisect import bisect_left, insort
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention

from vigil_data.errors import UserError

NAME = "vigil_blocks"
"""Name under which transformers finds :func:`attend`."""

WITHOUT_EFFECT = frozenset(
    {
        "cache_position",
        "is_causal",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)
"""Arguments of transformers' attention functions that change nothing under a complete mask and without a cache."""


class Rows:
    """What the attention of every layer shares in one forward pass.

    Args:
        position_RT: position of each token in its own prompt.
        mask_R1TT: whether a token attends to another one, sliding windows left out.
        answers: row and column of tokens ``[A]`` whose attention in the last layer is wanted; ``None``: of none.
        last: index of the last layer.

    Attributes:
        layers: number of layers that have attended.
        attention_AT: mean over heads of that attention, float32; ``None`` before the last layer.
    """

    def __init__(self, position_RT: Tensor, mask_R1TT: Tensor, answers: tuple[Tensor, Tensor] | None, last: int) -> None:
        self.position_RT = position_RT
        self.masks: dict[int | None, Tensor] = {None: mask_R1TT}
        self.answers = answers
        self.last = last
        self.layers = 0
        self.attention_AT: Tensor | None = None

    def mask(self, window: int | None) -> Tensor:
        """Return the mask ``[R, 1, T, T]`` of a layer whose tokens see ``window`` positions, their own included."""
        if window is not None and window not in self.masks:
            distance_RTT = self.position_RT.unsqueeze(2) - self.position_RT.unsqueeze(1)
            self.masks[window] = self.masks[None] & (distance_RTT < window).unsqueeze(1)
        return self.masks[window]


def register() -> str:
    """Make :func:`attend` known to transformers, and return its name."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    return NAME


def attend(
    module: nn.Module,
    query_RHTD: Tensor,
    key_RGTD: Tensor,
    value_RGTD: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    rows: Rows | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend in one layer; transformers calls this.

    Args:
        module: the layer's attention.
        query_RHTD: queries of H heads.
        key_RGTD: keys of G heads; H is a multiple of G.
        value_RGTD: values of G heads.
        attention_mask: the mask as the architecture passes it on; that of ``rows`` holds.
        scaling: factor of the products (default: one over the square root of their length).
        dropout: probability on the attention weights.
        rows: the forward pass that this is part of.
        sliding_window: positions that the layer sees.
        softcap: c of a cap c tanh(x / c) on the logits.
        others: arguments that must have no effect here.

    Returns:
        ``[R, T, H, D]``

    Raises:
        UserError: if the architecture's attention is not causal, or has a part that this function lacks.
    """
    del attention_mask
    architecture = type(module).__name__
    extra = sorted(name for name, value in others.items() if value is not None and name not in WITHOUT_EFFECT)
    if rows is None or extra or not getattr(module, "is_causal", False) or others.get("is_causal") is False:
        why = f"{extra[0]}, which is not supported" if extra else "no causal attention over blocks"
        raise UserError(f"model.encoders.text: {architecture} has {why}; take a decoder such as llama, qwen3 or gemma3_text")
    groups = query_RHTD.shape[1] // key_RGTD.shape[1]
    scale = query_RHTD.shape[-1] ** -0.5 if scaling is None else scaling
    mask_R1TT = rows.mask(sliding_window)
    key_RHTD, value_RHTD = _per_head(key_RGTD, groups), _per_head(value_RGTD, groups)
    if softcap is None:
        output_RHTD = scaled_dot_product_attention(query_RHTD, key_RHTD, value_RHTD, mask_R1TT, dropout, scale=scale)
    else:
        logits_RHTT = _capped(query_RHTD @ key_RHTD.transpose(2, 3) * scale, softcap).masked_fill(~mask_R1TT, -torch.inf)
        weights_RHTT = drop(logits_RHTT.softmax(-1, torch.float32).to(value_RHTD.dtype), dropout, training=dropout > 0)
        output_RHTD = weights_RHTT @ value_RHTD
    if rows.answers is not None and rows.layers == rows.last:
        rows.attention_AT = _attention_of(
            rows.answers, query_RHTD.detach(), key_RGTD.detach(), mask_R1TT, scale=scale, softcap=softcap
        )
    rows.layers += 1
    return output_RHTD.transpose(1, 2).contiguous(), None


def _attention_of(
    answers: tuple[Tensor, Tensor],
    query_RHTD: Tensor,
    key_RGTD: Tensor,
    mask_R1TT: Tensor,
    *,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Return the attention ``[A, T]`` of some tokens over their rows, the mean over heads."""
    row_A, column_A = answers
    groups = query_RHTD.shape[1] // key_RGTD.shape[1]
    mask_A1T = mask_R1TT[row_A, 0, column_A].unsqueeze(1)
    query_AHD = query_RHTD[row_A, :, column_A].float()
    total_AT = torch.zeros_like(mask_A1T[:, 0], dtype=torch.float32)
    for group, query_AhD in enumerate(
        torch.split(query_AHD, groups, 1)
    ):  # one head of keys at a time: rows of several answers repeat
        logits_AhT = _capped(query_AhD @ key_RGTD[row_A, group].float().transpose(1, 2) * scale, softcap)
        total_AT = total_AT + logits_AhT.masked_fill(~mask_A1T, -torch.inf).softmax(-1).sum(1)
    return total_AT / query_RHTD.shape[1]


def _per_head(shared_RGTD: Tensor, groups: int) -> Tensor:
    """Repeat the keys or values that several heads share: ``[R, H, T, D]``."""
    return shared_RGTD if groups == 1 else shared_RGTD.unsqueeze(2).expand(-1, -1, groups, -1, -1).flatten(1, 2)


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


class PassageRows(NamedTuple):
    """Where the tokens of passages ``[S, T]`` stand in rows ``[R, T]``.

    Attributes:
        source_RT: index of each row's tokens among the passages', flattened; -1 at padding.
        position_RT: position of each token in its passage.
        mask_R1TT: bool, whether two tokens are of one passage, and the second one is not after the first.
        place_ST: index of each passage's tokens among the rows', flattened; 0 at padding.
    """

    source_RT: Tensor
    position_RT: Tensor
    mask_R1TT: Tensor
    place_ST: Tensor


def pack_passages(lengths_S: npt.NDArray[np.int64], width: int, device: torch.device, min_rows: int = 1) -> PassageRows | None:
    """Place passages in as few rows as best fit in decreasing order needs (Johnson 1974).

    Rows are no longer than the longest passage, so that attention, quadratic in a row's length, never costs more.

    Args:
        lengths_S: tokens of each passage.
        width: T, at least the longest passage.
        device: device of the result.
        min_rows: fewest rows to make.

    Returns:
        The rows; ``None`` if they are as many as there are passages, or fewer than ``min_rows``.
    """
    free: list[tuple[int, int]] = []  # free tokens and number of each row, sorted
    row_S = np.zeros(len(lengths_S), np.int64)
    start_S = np.zeros(len(lengths_S), np.int64)
    n_rows = 0
    for s in np.argsort(-lengths_S, kind="stable").tolist():
        length = int(lengths_S[s])
        found = bisect_left(free, (length, -1))
        room, row = free.pop(found) if found < len(free) else (width, n_rows)
        n_rows = max(n_rows, row + 1)
        row_S[s], start_S[s] = row, width - room
        insort(free, (room - length, row))
    if n_rows == len(lengths_S) or n_rows < min_rows:
        return None
    real_ST = np.arange(width) < lengths_S[:, None]
    place_ST = np.where(real_ST, (row_S * width + start_S)[:, None] + np.arange(width), 0)
    source = np.full(n_rows * width, -1, np.int64)
    source[place_ST[real_ST]] = np.flatnonzero(real_ST)
    source_RT = torch.from_numpy(source).view(n_rows, width).to(device)
    passage_RT = source_RT.div(width, rounding_mode="floor")  # -1 at padding
    column_T = torch.arange(width, device=device)
    mask_RTT = (passage_RT.unsqueeze(2) == passage_RT.unsqueeze(1)) & (column_T.unsqueeze(1) >= column_T)
    position_RT = source_RT.clamp(min=0) % width
    return PassageRows(source_RT, position_RT, mask_RTT.unsqueeze(1), torch.from_numpy(place_ST).to(device))
