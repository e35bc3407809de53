"""Files of the token cache: an encoder's tokens of many items, mapped into memory and read at random rows.

A file holds ``row`` int64 ``[R]``, the dataset's rows in it, ``count`` int64 ``[R]``, the segments of each, and ``tokens``
float32 ``[S, P, D]``, ``role`` int64 ``[S]`` and ``time`` float32 ``[S, 2]``, those of all segments in the same order. Its header
lists the items that cannot be decoded.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vigil_data.errors import Failure
from vigil_data.filesystem import replaced_file
from vigil_data.loading.batch import TOKENS, Segments
from vigil_data.loading.packing import Refusal
from vigil_data.loading.sampler import Rows

SEGMENTS = (TOKENS, "role", "time")
"""What a file holds for each segment."""


@dataclass(frozen=True, slots=True)
class TokenFile:
    """Content of a file.

    Attributes:
        row: rows of the dataset, int64 ``[R]``.
        count: segments of each row, int64 ``[R]``.
        segments: ``tokens``, ``role`` and ``time`` of all segments, see :class:`.Segments`.
        refused: row to the reason why its item cannot be decoded.
    """

    row: Rows
    count: NDArray[np.int64]
    segments: Mapping[str, Tensor]
    refused: dict[int, Refusal]

    def write(self, path: Path) -> None:
        """Write the file; it is complete or absent.

        Raises:
            Failure: if it cannot be written.
        """
        refused = [[row, r.id, r.modality, r.index, r.reason] for row, r in self.refused.items()]
        tensors = {"row": torch.from_numpy(self.row), "count": torch.from_numpy(self.count), **self.segments}
        with replaced_file(path) as partial:
            save_file(tensors, partial, {"refused": json.dumps(refused)})

    @classmethod
    def read(cls, path: Path) -> "TokenFile":
        """Map a file into memory: a token is read from the disk when it is used.

        Raises:
            Failure: if it is absent or damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                row, count = (file.get_tensor(name).numpy() for name in ("row", "count"))
                segments = {name: file.get_tensor(name) for name in SEGMENTS}
                refused = {row: Refusal(*rest) for row, *rest in json.loads(file.metadata()["refused"])}
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise Failure(
                f"{path}: cannot be read ({error}); delete the token cache with `vigil data cache DATASET --clear`, unless that "
                "has just been done, and start the run again"
            ) from error
        return cls(row, count, segments, refused)


class TokenReader:
    """Reader of an entry of the token cache.

    Args:
        path: folder of the entry.
        rows: number of rows of the dataset.

    Attributes:
        refused: row to the reason why its item cannot be decoded.

    Raises:
        Failure: if a file is damaged.
    """

    def __init__(self, path: Path, rows: int) -> None:
        self._path = path
        self.refused: dict[int, Refusal] = {}
        self._files: list[Mapping[str, Tensor]] = []
        self._file_N = np.full(rows, -1, np.int32)
        self._start_N, self._count_N = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        for number, name in enumerate(sorted(path.glob("[0-9]*.safetensors"))):
            file = TokenFile.read(name)
            self._files.append(file.segments)
            self._file_N[file.row] = number
            self._start_N[file.row] = np.cumsum(file.count) - file.count
            self._count_N[file.row] = file.count
            self.refused |= file.refused

    def read(self, rows: Rows) -> Segments | None:
        """Return the segments of rows in their order, with tokens in place of inputs; ``None`` if there is no segment.

        Raises:
            Failure: if a row is in no file.
        """
        if (self._file_N[rows] < 0).any():
            raise Failure(f"{self._path}: lacks tokens of row {rows[self._file_N[rows] < 0][0]}; start the run again")
        counts = self._count_N[rows]
        if not (total := int(counts.sum())):
            return None
        item_S = np.repeat(np.arange(len(rows)), counts)
        # The place of a segment in its file: the start of its item, plus its own place within the item.
        place_S = np.repeat(self._start_N[rows] - (np.cumsum(counts) - counts), counts) + np.arange(total)
        tokens, role, time = self._gather(self._file_N[rows][item_S], place_S)
        return Segments(torch.from_numpy(item_S), {TOKENS: tokens}, role, time)

    def _gather(self, file_S: NDArray[np.int32], place_S: NDArray[np.int64]) -> list[Tensor]:
        """Return each of :data:`SEGMENTS` at places of files."""
        order_S = np.argsort(file_S, kind="stable")
        runs = np.split(order_S, np.flatnonzero(np.diff(file_S[order_S])) + 1)  # the segments of one file after the other
        back = torch.from_numpy(np.argsort(order_S))
        parts = [[self._files[file_S[at[0]]][name][torch.from_numpy(place_S[at])] for at in runs] for name in SEGMENTS]
        return [part[0] if len(part) == 1 else torch.cat(part)[back] for part in parts]
