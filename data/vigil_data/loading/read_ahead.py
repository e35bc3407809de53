"""Reading of the next batches while those before them are decoded: a few large reads in place of many small ones."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from vigil_data.dataset.dataset import Dataset
from vigil_data.items import Item
from vigil_data.loading.sampler import Rows

MAX_ROWS, MAX_BYTES = 256, 16 << 20
"""Rows, and bytes as far as earlier reads can tell, that are read at once; a batch is always read whole."""


class _Read(NamedTuple):
    """What was read: the rows of each batch, the stored rows, and the place of each batch's rows in them, one after the other."""

    parts: Sequence[Rows]
    table: pa.Table
    places: Rows


class ReadAhead:
    """Reader of batches that are announced; a thread reads the next ones.

    What is read does not depend on what was announced, so that a wrong announcement costs time only.

    Args:
        dataset: the dataset.
        columns: stored columns that are read; see :meth:`vigil_data.dataset.dataset.Dataset.item_columns`.

    Attributes:
        reads: number of reads so far.
    """

    def __init__(self, dataset: Dataset, columns: Sequence[str]) -> None:
        self._dataset = dataset
        self._columns = columns
        self._held: deque[tuple[Rows, list[Item]]] = deque()
        self._next: Future[_Read] | None = None
        self._max_rows = MAX_ROWS
        self._thread = ThreadPoolExecutor(1, "read-ahead")
        self.reads = 0

    def items(self, rows: Rows, ahead: Sequence[Rows] = ()) -> list[Item]:
        """Return the items of rows in the given order.

        Args:
            rows: the rows of a batch.
            ahead: rows of the batches that are wanted next, in order.
        """
        found = self._find(rows)
        if found is None and self._next is not None:
            read = self._next.result()
            self._read_next(ahead[len(read.parts) - 1 :])  # while the items of this read are made
            self._hold(read)
            found = self._find(rows)
        if found is None:  # It is read alone, as training waits for it.
            self.reads += 1
            self._hold(self._read([rows]))
            found = self._find(rows) or []
        if self._next is None:
            self._read_next(ahead[len(self._held) :])
        return found

    def _find(self, rows: Rows) -> list[Item] | None:
        """Return the items of a batch that is held, and drop those before it."""
        while self._held:
            held, items = self._held.popleft()
            if np.array_equal(held, rows):
                return items
        return None

    def _hold(self, read: _Read) -> None:
        stored = self._dataset.items(read.table)
        items = iter([stored[place] for place in read.places.tolist()])
        self._held.extend((part, list(islice(items, len(part)))) for part in read.parts)
        self._max_rows = max(1, min(MAX_ROWS, MAX_BYTES * len(stored) // max(read.table.nbytes, 1)))

    def _read_next(self, ahead: Sequence[Rows]) -> None:
        """Start to read the next batches that may be read at once, at least one if there is any."""
        parts: list[Rows] = []
        for part in ahead:
            if parts and sum(map(len, parts)) + len(part) > self._max_rows:
                break
            parts.append(part)
        self.reads += bool(parts)
        self._next = self._thread.submit(self._read, parts) if parts else None

    def _read(self, parts: Sequence[Rows]) -> _Read:
        # In the order in which they are stored, which Lance reads faster; a row that is drawn twice is read once.
        unique, places = np.unique(np.concatenate(parts), return_inverse=True)
        return _Read(parts, self._dataset.table(self._columns, unique), places.astype(np.int64))
