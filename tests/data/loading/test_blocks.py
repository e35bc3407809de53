"""What is read by blocks does not depend on what is announced; a block that is announced is read once, before it is wanted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.dataset.dataset import Dataset, write
from vigil_data.items import Item
from vigil_data.loading.blocks import BlockReader

ROWS, BLOCK = 22, 4
BATCH = st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=6).map(lambda rows: np.array(rows, np.int64))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("blocks") / "d"
    write(path, [Item(f"{n}", ("word",)) for n in range(ROWS)])
    return Dataset(path)


@settings(deadline=None)
@given(batches=st.lists(BATCH, max_size=12), held=st.integers(1, 6), announced=st.lists(st.lists(BATCH, max_size=3), max_size=12))
def test_block_reader_returns_the_rows_of_each_batch(dataset: Dataset, batches, held: int, announced) -> None:
    reader = BlockReader(dataset, BLOCK, held, ["id"])
    for step, rows in enumerate(batches):
        ahead = announced[step] if step < len(announced) else batches[step + 1 : step + 4]
        assert [item.id for item in reader.items(rows, ahead)] == [str(row) for row in rows]


def test_block_reader_reads_each_block_once_and_the_next_one_ahead(dataset: Dataset) -> None:
    reader = BlockReader(dataset, BLOCK, 2, ["id"])
    batches = [np.array([start, start + 3, start + 1]) for start in range(0, 20, 2)]
    for step, rows in enumerate(batches):
        reader.items(rows, batches[step + 1 : step + 3])
        needed = {row // BLOCK for batch in batches[: step + 3] for row in batch.tolist()}
        assert reader.blocks_read in (len(needed) - 1, len(needed)), "one block at a time"
    assert reader.blocks_read == 6
