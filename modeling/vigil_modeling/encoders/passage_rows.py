"""Packing of passages into rows: several short passages share a row as long as the longest one."""

from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


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
