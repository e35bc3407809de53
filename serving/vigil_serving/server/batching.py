"""Micro-batching: items of many requests are scored together, and each request gets its decisions in its own order.

The event loop only collects batches; scoring runs in threads. All items of a request are scored by one bundle, which the response
names. The queue is bounded, and a request whose client has disconnected is removed from it.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from vigil_data.items import Item
from vigil_serving.protocol.errors import busy, traceback_summary
from vigil_serving.runtime.decisions import Decision
from vigil_serving.server.metrics import ServerMetrics
from vigil_serving.server.model_manager import LoadedBundle

_log = logging.getLogger("vigil.serve")


class ScoringResult(NamedTuple):
    """Decisions on a request's items, in order, and the bundle that made them."""

    loaded: LoadedBundle
    decisions: list[Decision]


class ScoringError(Exception):
    """Scoring an item failed, although it could be decoded.

    Args:
        index: position of the item in the request.
    """

    def __init__(self, index: int) -> None:
        super().__init__(f"items[{index}]: scoring failed; see the server's log")
        self.index = index


@dataclass(eq=False, slots=True)
class _PendingRequest:
    """Items of a waiting request, and the future of its result."""

    items: Sequence[Item]
    future: asyncio.Future[ScoringResult]
    arrived: float


class Batcher:
    """Collects items of many requests into batches and scores them in threads.

    Args:
        current: returns the bundle that decides now.
        metrics: counts batches, decisions and failures.
        max_batch: maximum items per batch; a larger request is a batch of its own.
        max_wait: seconds that the first item of a batch waits for others.
        queue: maximum items waiting.
        workers: batches scored at the same time.
        on_scored: called in the scoring thread with the items and the result of each request.

    Attributes:
        waiting: items waiting now.
    """

    def __init__(
        self,
        current: Callable[[], LoadedBundle],
        metrics: ServerMetrics,
        *,
        max_batch: int,
        max_wait: float,
        queue: int,
        workers: int,
        on_scored: Callable[[Sequence[Item], ScoringResult], None] | None = None,
    ) -> None:
        self._current, self._metrics, self._on_scored = current, metrics, on_scored
        self._max_batch, self._max_wait, self._queue = max_batch, max_wait, queue
        self._pending: deque[_PendingRequest] = deque()
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(workers)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="score")
        self._running: set[asyncio.Future[None]] = set()
        self._dispatcher: asyncio.Task[None] | None = None
        self.waiting = 0
        metrics.watch_queue(lambda: self.waiting)

    def start(self) -> None:
        """Start collecting batches; needs a running event loop."""
        self._dispatcher = asyncio.get_running_loop().create_task(self._dispatch())

    async def stop(self) -> None:
        """Stop collecting batches; waiting requests are not scored."""
        if self._dispatcher is not None:
            self._dispatcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._dispatcher
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def submit(self, items: Sequence[Item]) -> ScoringResult:
        """Score the items of a request; cancelling removes them from the queue if they are still waiting.

        Raises:
            RequestError: 429, if they do not fit in the queue.
            ScoringError: if scoring one of them failed.
        """
        if self.waiting + len(items) > self._queue:
            raise busy("the queue is full; try again later")
        loop = asyncio.get_running_loop()
        request = _PendingRequest(items, loop.create_future(), loop.time())
        self._pending.append(request)
        self.waiting += len(items)
        self._wake.set()
        try:
            return await request.future
        finally:
            if not request.future.done() or request.future.cancelled():
                with contextlib.suppress(ValueError):
                    self._pending.remove(request)
                    self.waiting -= len(items)

    @property
    def full(self) -> bool:
        """Whether the queue is full."""
        return self.waiting >= self._queue

    async def _dispatch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            batch = await self._next_batch()
            running = loop.run_in_executor(self._pool, self._score, batch, loop)
            self._running.add(running)
            running.add_done_callback(self._finished)

    def _finished(self, running: asyncio.Future[None]) -> None:
        self._running.discard(running)
        self._slots.release()

    async def _next_batch(self) -> list[_PendingRequest]:
        """Wait until a batch is full, or until its first request has waited for ``max_wait``."""
        loop = asyncio.get_running_loop()
        while not self._pending or (
            self.waiting < self._max_batch and (left := self._pending[0].arrived + self._max_wait - loop.time()) > 0
        ):
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left if self._pending else None):
                    await self._wake.wait()
        batch = [self._pending.popleft()]
        count = len(batch[0].items)
        while self._pending and count + len(self._pending[0].items) <= self._max_batch:
            batch.append(self._pending.popleft())
            count += len(batch[-1].items)
        self.waiting -= count
        self._metrics.batch(count)
        return batch

    def _score(self, batch: list[_PendingRequest], loop: asyncio.AbstractEventLoop) -> None:
        """Score a batch in a thread of the pool; every failure becomes the result of a request."""
        loaded = self._current()
        try:
            decisions = loaded.scorer.score([item for request in batch for item in request.items])
            results: list[ScoringResult | ScoringError] = [ScoringResult(loaded, own) for own in _split(decisions, batch)]
        except Exception as error:
            self._failed(error)
            results = [self._score_alone(request, loaded) for request in batch]
        for request, result in zip(batch, results, strict=True):
            loop.call_soon_threadsafe(_resolve, request.future, result)
        for request, result in zip(batch, results, strict=True):
            if isinstance(result, ScoringResult):
                self._metrics.decided(result.decisions)
                if self._on_scored is not None:
                    self._on_scored(request.items, result)

    def _score_alone(self, request: _PendingRequest, loaded: LoadedBundle) -> ScoringResult | ScoringError:
        """Score a request item by item, so that only the request with the failing item fails."""
        decisions = []
        for index, item in enumerate(request.items):
            try:
                decisions += loaded.scorer.score([item])
            except Exception as error:
                self._failed(error)
                return ScoringError(index)
        return ScoringResult(loaded, decisions)

    def _failed(self, error: Exception) -> None:
        """Count and log a failure without its message, which may contain content."""
        self._metrics.failure()
        _log.error("scoring failed: %s", traceback_summary(error))


def _split(decisions: list[Decision], batch: Sequence[_PendingRequest]) -> list[list[Decision]]:
    """Return the decisions of each request."""
    if len(decisions) != sum(len(request.items) for request in batch):
        raise ValueError("not as many decisions as items")
    rest = iter(decisions)
    return [list(islice(rest, len(request.items))) for request in batch]


def _resolve(future: "asyncio.Future[ScoringResult]", result: ScoringResult | ScoringError) -> None:
    if future.done():
        return  # the client has disconnected
    if isinstance(result, ScoringResult):
        future.set_result(result)
    else:
        future.set_exception(result)
