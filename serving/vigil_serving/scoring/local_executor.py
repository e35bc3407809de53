"""Scoring in this process: items are read while others are scored."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import Failure
from vigil_data.items import Item
from vigil_serving.runtime.embedding_cache import Cache
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.scoring.job_spec import Rows
from vigil_serving.scoring.output_schema import table_of
from vigil_serving.scoring.shards import Parts

READ_ITEMS = 256
"""Items of one read at most."""
READ_BYTES = 8 << 20
"""Bytes that a read aims at, so that memory does not depend on whether items are comments or hours of sound."""
AHEAD = 2
"""Reads that wait at most."""
CACHE_BYTES = 64 << 20


def score_parts(parts: Parts, numbers: Sequence[int], scorer: Scorer, rows: Rows) -> Iterator[int]:
    """Score and write parts, one after the other.

    Args:
        parts: where they go.
        numbers: which.
        scorer: decides; not to be used by others meanwhile.
        rows: of all parts.

    Yields:
        The number of each part that is written.

    Raises:
        Failure: if items cannot be read or a part cannot be written.
    """
    wanted = [rows.numbers[parts.plan.span(number)] for number in numbers]
    items = chain.from_iterable(_read_ahead(rows.dataset, np.concatenate(wanted)))
    for number in numbers:
        # What was remembered of an earlier part was encoded beside other items, which may move the last bit of a number:
        # a part has to be the same whichever process scores it, after whichever other.
        scorer.cache = Cache(CACHE_BYTES)
        decisions = scorer.score(islice(items, parts.plan.size(number)))
        parts.write(number, table_of(decisions, scorer.bundle))
        yield number


def _read_ahead(dataset: Dataset, rows: NDArray[np.int64]) -> Iterator[list[Item]]:
    """Items in the order of the rows, some at a time, while the next ones are read by another thread."""
    waiting: deque[Future[list[Item]]] = deque()
    size, start = 16, 0
    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        try:
            while waiting or start < len(rows):
                while len(waiting) <= AHEAD and start < len(rows):
                    waiting.append(pool.submit(dataset.take, rows[start : start + size]))
                    start += size
                items = _result(dataset, waiting.popleft())
                size = min(READ_ITEMS, max(1, READ_BYTES * len(items) // (1 + sum(map(_bytes, items)))))
                yield items
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _bytes(item: Item) -> int:
    return sum(len(medium) for media in (item.text, item.image, item.audio) for medium in media)


def _result(dataset: Dataset, read: "Future[list[Item]]") -> list[Item]:
    try:
        return read.result()
    except (OSError, ValueError, RuntimeError) as error:  # what Lance raises for a file that is gone or damaged
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Failure(f"dataset {dataset.path}: cannot be read: {reason}") from None
