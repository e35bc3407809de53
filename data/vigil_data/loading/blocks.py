"""Reading of items by blocks of adjacent rows, which are kept in memory until their items have been read."""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from vigil_data.dataset.dataset import Dataset
from vigil_data.items import Item
from vigil_data.loading.sampler import Rows


class BlockReader:
    """Reader of items that reads whole blocks: a few large reads in place of many small ones. A thread reads the next block.

    Args:
        dataset: the dataset.
        block: rows of a block.
        held: blocks kept in memory; the least recently used is dropped.
        columns: stored columns that are read; see :meth:`vigil_data.dataset.dataset.Dataset.item_columns`.

    Attributes:
        blocks_read: number of blocks read so far.
    """

    def __init__(self, dataset: Dataset, block: int, held: int, columns: Sequence[str]) -> None:
        self._dataset = dataset
        self._block = block
        self._held = held
        self._columns = columns
        self._blocks: OrderedDict[int, list[Item]] = OrderedDict()
        self._next: tuple[int, Future[pa.Table]] | None = None
        self._thread = ThreadPoolExecutor(1, "block-reader")
        self.blocks_read = 0

    def items(self, rows: Rows, ahead: Sequence[Rows] = ()) -> list[Item]:
        """Return the items of rows in the given order.

        Args:
            rows: the rows of a batch.
            ahead: rows of the batches that are wanted next, in order.
        """
        numbers, places = np.divmod(rows, self._block)
        blocks = {number: self._take(number) for number in np.unique(numbers).tolist()}
        self._read_next(ahead)
        return [blocks[number][place] for number, place in zip(numbers.tolist(), places.tolist(), strict=True)]

    def _take(self, number: int) -> list[Item]:
        if number in self._blocks:
            self._blocks.move_to_end(number)
        else:
            if len(self._blocks) >= self._held:
                self._blocks.popitem(last=False)
            if self._next is not None and self._next[0] == number:
                (_, read), self._next = self._next, None
                self._blocks[number] = self._dataset.items(read.result())
            else:
                self.blocks_read += 1
                self._blocks[number] = self._dataset.items(self._read(number))
        return self._blocks[number]

    def _read_next(self, ahead: Sequence[Rows]) -> None:
        """Start to read the first block that the next batches need and that is not held, unless it is being read."""
        wanted: list[int] = list(dict.fromkeys((np.concatenate(ahead) // self._block).tolist())) if ahead else []
        if self._next is not None and self._next[0] not in wanted:
            self._next = None  # it was announced for batches that are not wanted any more
        if self._next is None and (number := next((number for number in wanted if number not in self._blocks), None)) is not None:
            self.blocks_read += 1
            self._next = number, self._thread.submit(self._read, number)

    def _read(self, number: int) -> pa.Table:
        start = number * self._block
        rows = np.arange(start, min(start + self._block, len(self._dataset)))
        return self._dataset.table(self._columns, rows)
