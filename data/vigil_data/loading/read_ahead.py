"""Reading of the rows of several batches at once: a few large reads in place of many small ones, in the order of the batches."""

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from vigil_data.dataset.dataset import Dataset
from vigil_data.loading.sampler import Rows

MAX_ROWS, MAX_BYTES = 256, 32 << 20
"""Rows, and bytes as far as earlier reads can tell, that are read at once; a batch is always read whole."""


class ReadAhead:
    """Reader of batches that are announced.

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
        self._held: deque[tuple[Rows, pa.Table]] = deque()
        self._max_rows = 0  # The first batch is read alone: training waits for it.
        self.reads = 0

    def table(self, rows: Rows, ahead: Sequence[Rows] = ()) -> pa.Table:
        """Return rows in the given order.

        Args:
            rows: the rows of a batch.
            ahead: rows of the batches that are wanted next, in order.
        """
        while self._held:
            held, table = self._held.popleft()
            if np.array_equal(held, rows):
                return table
        parts = [rows, *self._within_limits(len(rows), ahead)]
        whole = self._dataset.table(self._columns, np.concatenate(parts))
        self.reads += 1
        self._max_rows = max(1, min(MAX_ROWS, MAX_BYTES * whole.num_rows // max(whole.nbytes, 1)))
        start = 0
        for part in parts:
            self._held.append((part, whole.slice(start, len(part))))
            start += len(part)
        return self._held.popleft()[1]

    def _within_limits(self, rows: int, ahead: Sequence[Rows]) -> Iterator[Rows]:
        for part in ahead:
            rows += len(part)
            if rows > self._max_rows:
                return
            yield part
