"""What is read does not depend on what is announced; announced batches are read together, within limits."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.dataset.dataset import Dataset, write
from vigil_data.items import Item
from vigil_data.loading import read_ahead
from vigil_data.loading.loader import REQUESTS_AHEAD, Request, announced
from vigil_data.loading.read_ahead import ReadAhead

ROWS = 40
COLUMNS = ["id", "text"]
BATCH = st.lists(st.integers(0, ROWS - 1), max_size=6).map(lambda rows: np.array(rows, np.int64))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("ahead") / "d"
    write(path, [Item(f"{n}", ("word " * n,)) for n in range(ROWS)])
    return Dataset(path)


def ids(rows: Sequence[int]) -> list[str]:
    return [str(row) for row in rows]


@settings(deadline=None)
@given(batches=st.lists(BATCH, max_size=30), workers=st.integers(0, 3), lost=st.sets(st.integers(0, 30)))
def test_read_ahead_returns_the_rows_of_each_batch(dataset: Dataset, batches, workers: int, lost: set[int]) -> None:
    """Batches come in the order of a DataLoader with workers, but for some that went elsewhere."""
    readers = [ReadAhead(dataset, COLUMNS) for _ in range(max(1, workers))]
    found = list(announced([Request(batch) for batch in batches], workers))
    assert [request.rows.tolist() for request in found] == [batch.tolist() for batch in batches]
    for step, request in enumerate(found):
        if step not in lost:
            items = readers[step % len(readers)].items(request.rows, request.ahead)
            assert [item.id for item in items] == ids(request.rows)


def test_read_ahead_reads_announced_batches_at_once_within_limits(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [np.arange(start, start + 2) for start in range(0, ROWS, 2)]
    requests = list(announced([Request(batch) for batch in batches], 2))
    assert all(len(request.ahead) <= REQUESTS_AHEAD for request in requests)
    assert [rows.tolist() for rows in requests[0].ahead[:2]] == [[4, 5], [8, 9]], "those of the first of two workers"

    def reads(of: list[Request]) -> int:
        reader = ReadAhead(dataset, COLUMNS)
        for request in of:
            reader.items(request.rows, request.ahead)
        return reader.reads

    assert reads(requests[::2]) == 2, "the first batch alone, as training waits for it, then all others"
    assert reads([request._replace(ahead=()) for request in requests[::2]]) == 10
    monkeypatch.setattr(read_ahead, "MAX_ROWS", 4)
    assert reads(requests[::2]) == 1 + 5, "two batches at once"
    monkeypatch.setattr(read_ahead, "MAX_ROWS", 256)
    monkeypatch.setattr(read_ahead, "MAX_BYTES", 1)
    assert reads(requests[::2]) == 10, "batches whose bytes exceed the limit are read one by one"
