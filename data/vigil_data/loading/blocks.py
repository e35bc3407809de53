"""Reading of items by blocks of adjacent rows, which are kept in memory until their items have been read."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from vigil_data.dataset.dataset import Dataset
from vigil_data.items import Item
from vigil_data.loading.sampler import Rows


class BlockReader:
    """Reader of items that reads whole blocks: a few large reads in place of many small ones.

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
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()
        self.blocks_read = 0

    def take(self, rows: Rows) -> list[Item]:
        """Return items by row number, in the given order."""
        numbers = rows // self._block
        parts, places = [], []
        for number in np.unique(numbers).tolist():
            at = np.flatnonzero(numbers == number)
            parts.append(self._table(number).take(pa.array(rows[at] - number * self._block)))
            places.append(at)
        back = np.argsort(np.concatenate(places))
        return self._dataset.items(pa.concat_tables(parts).take(pa.array(back)))

    def _table(self, number: int) -> pa.Table:
        if number in self._tables:
            self._tables.move_to_end(number)
        else:
            if len(self._tables) >= self._held:
                self._tables.popitem(last=False)
            start = number * self._block
            rows = np.arange(start, min(start + self._block, len(self._dataset)))
            self._tables[number] = self._dataset.table(self._columns, rows).combine_chunks()
            self.blocks_read += 1
        return self._tables[number]
