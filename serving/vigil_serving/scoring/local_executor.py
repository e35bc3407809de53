"""Scoring in this process; items are read while others are scored."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import Failure
from vigil_data.items import Item
from vigil_serving.runtime.embedding_cache import EmbeddingCache
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.scoring.job_spec import JobSpec, SelectedRows
from vigil_serving.scoring.output_schema import decisions_table
from vigil_serving.scoring.shards import Shards

MAX_READ_ITEMS = 256
"""Maximum items per read."""
TARGET_READ_BYTES = 8 << 20
"""Target size of a read, so that memory does not depend on the size of items."""
MAX_WAITING_READS = 2
"""Maximum number of reads waiting."""
CACHE_BYTES = 64 << 20


def score_shards(shards: Shards[JobSpec], numbers: Sequence[int], scorer: Scorer, rows: SelectedRows) -> Iterator[int]:
    """Score and write shards, one after the other.

    Args:
        shards: the shards of the job.
        numbers: shards to score.
        scorer: the scorer; its cache is replaced for every shard.
        rows: rows of the job.

    Yields:
        The number of each written shard.

    Raises:
        Failure: if items cannot be read or a shard cannot be written.
    """
    wanted = [rows.numbers[shards.job.span(number)] for number in numbers]
    items = chain.from_iterable(read_ahead(rows.dataset, np.concatenate(wanted)))
    for number in numbers:
        # A shard must not depend on which shards the process scored before: embeddings in the cache were encoded in batches
        # with other items, which can change the last bit.
        scorer.cache = EmbeddingCache(CACHE_BYTES)
        decisions = scorer.score(islice(items, shards.job.size(number)))
        shards.write(number, decisions_table(decisions, scorer.bundle))
        yield number


def read_ahead(dataset: Dataset, rows: NDArray[np.int64]) -> Iterator[list[Item]]:
    """Yield items in the order of the rows, while the next ones are read in a thread."""
    waiting: deque[Future[list[Item]]] = deque()
    size, start = 16, 0
    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        try:
            while waiting or start < len(rows):
                while len(waiting) <= MAX_WAITING_READS and start < len(rows):
                    waiting.append(pool.submit(dataset.take, rows[start : start + size]))
                    start += size
                items = _result(dataset, waiting.popleft())
                size = min(MAX_READ_ITEMS, max(1, TARGET_READ_BYTES * len(items) // (1 + sum(map(_bytes, items)))))
                yield items
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _bytes(item: Item) -> int:
    return sum(len(medium) for media in (item.text, item.image, item.audio) for medium in media)


def _result(dataset: Dataset, read: "Future[list[Item]]") -> list[Item]:
    try:
        return read.result()
    except (OSError, ValueError, RuntimeError) as error:  # raised by Lance for a missing or damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Failure(f"dataset {dataset.path}: cannot be read: {reason}") from None
