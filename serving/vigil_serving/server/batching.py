"""Micro-batches: items of many requests are scored together, and each request gets its own answer, in its own order.

The event loop only gathers; scoring happens in threads. A request's items always are scored by one bundle, so its answer can name
it. What waits is bounded, and a request whose client has gone is taken out of the queue.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from traceback import extract_tb
from typing import NamedTuple

from vigil_data.items import Item
from vigil_serving.protocol.errors import busy
from vigil_serving.runtime.scorer import Decision
from vigil_serving.server.metrics import Telemetry
from vigil_serving.server.model_manager import LoadedBundle

_log = logging.getLogger("vigil.serve")


class Answer(NamedTuple):
    """Decisions on a request's items, in order, and the bundle that made them."""

    loaded: LoadedBundle
    decisions: list[Decision]


class ScoringError(Exception):
    """Scoring one item failed, which decoding it did not foresee.

    Args:
        place: which item of the request.
    """

    def __init__(self, place: int) -> None:
        super().__init__(f"items[{place}]: scoring it failed; the server's log says where")
        self.place = place


@dataclass(eq=False, slots=True)
class _Job:
    """A request's items, and where its answer goes."""

    items: Sequence[Item]
    future: asyncio.Future[Answer]
    arrived: float


class Batcher:
    """Gathers items, has them scored, and gives each request its answer.

    Args:
        current: gives the bundle that decides now.
        telemetry: counts.
        max_batch: items scored together.
        max_wait: seconds that a lone item waits for others.
        queue: items that may wait.
        workers: batches scored at the same time.
        scored: called in the scoring thread with the items and the answer of each request.
    """

    def __init__(
        self,
        current: Callable[[], LoadedBundle],
        telemetry: Telemetry,
        *,
        max_batch: int,
        max_wait: float,
        queue: int,
        workers: int,
        scored: Callable[[Sequence[Item], Answer], None] | None = None,
    ) -> None:
        self._current, self._telemetry, self._scored = current, telemetry, scored
        self._max_batch, self._max_wait, self._queue = max_batch, max_wait, queue
        self._jobs: deque[_Job] = deque()
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(workers)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="score")
        self._running: set[asyncio.Future[None]] = set()
        self._dispatcher: asyncio.Task[None] | None = None
        self.waiting = 0
        telemetry.watch_queue(lambda: self.waiting)

    def start(self) -> None:
        """Begin to gather; the event loop must run."""
        self._dispatcher = asyncio.get_running_loop().create_task(self._dispatch())

    async def stop(self) -> None:
        """Stop gathering; what waits is not scored."""
        if self._dispatcher is not None:
            self._dispatcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._dispatcher
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def submit(self, items: Sequence[Item]) -> Answer:
        """Have a request's items scored; cancelling takes them out of the queue, if they are still in it.

        Raises:
            RequestError: 429, if they do not fit in the queue.
            ScoringError: if scoring one of them failed.
        """
        if self.waiting + len(items) > self._queue:
            raise busy("the queue is full; try again later")
        loop = asyncio.get_running_loop()
        job = _Job(items, loop.create_future(), loop.time())
        self._jobs.append(job)
        self.waiting += len(items)
        self._wake.set()
        try:
            return await job.future
        finally:
            if not job.future.done() or job.future.cancelled():
                with contextlib.suppress(ValueError):
                    self._jobs.remove(job)
                    self.waiting -= len(items)

    @property
    def full(self) -> bool:
        """Whether no item fits any more."""
        return self.waiting >= self._queue

    async def _dispatch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            batch = await self._gather()
            running = loop.run_in_executor(self._pool, self._score, batch, loop)
            self._running.add(running)
            running.add_done_callback(self._finished)

    def _finished(self, running: asyncio.Future[None]) -> None:
        self._running.discard(running)
        self._slots.release()

    async def _gather(self) -> list[_Job]:
        """Wait until a batch is full, or its first request has waited long enough."""
        loop = asyncio.get_running_loop()
        while not self._jobs or (
            self.waiting < self._max_batch and (left := self._jobs[0].arrived + self._max_wait - loop.time()) > 0
        ):
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left if self._jobs else None):
                    await self._wake.wait()
        batch = [self._jobs.popleft()]
        count = len(batch[0].items)
        while self._jobs and count + len(self._jobs[0].items) <= self._max_batch:
            batch.append(self._jobs.popleft())
            count += len(batch[-1].items)
        self.waiting -= count
        self._telemetry.batch(count)
        return batch

    def _score(self, batch: list[_Job], loop: asyncio.AbstractEventLoop) -> None:
        """Score a batch, in a thread of the pool; whatever goes wrong ends in somebody's answer."""
        loaded = self._current()
        try:
            made = loaded.scorer.score([item for job in batch for item in job.items])
            answers: list[Answer | ScoringError] = [Answer(loaded, of_job) for of_job in _split(made, batch)]
        except Exception as error:
            self._failed(error)
            answers = [self._score_alone(job, loaded) for job in batch]
        for job, answer in zip(batch, answers, strict=True):
            loop.call_soon_threadsafe(_settle, job.future, answer)
        for job, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Answer):
                self._telemetry.decided(answer.decisions)
                if self._scored is not None:
                    self._scored(job.items, answer)

    def _score_alone(self, job: _Job, loaded: LoadedBundle) -> Answer | ScoringError:
        """Score a request item by item, so that only the request with the culprit fails."""
        decisions = []
        for place, item in enumerate(job.items):
            try:
                decisions += loaded.scorer.score([item])
            except Exception as error:
                self._failed(error)
                return ScoringError(place)
        return Answer(loaded, decisions)

    def _failed(self, error: Exception) -> None:
        """Count and log a failure: its kind and place, for its message may hold content."""
        self._telemetry.failure()
        _log.error("scoring failed: %s", origin(error))


def origin(error: BaseException) -> str:
    """The kind of an exception and the lines of code that it came through, without its message."""
    frames = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in extract_tb(error.__traceback__)]
    return f"{type(error).__name__} at {' > '.join(frames[-4:])}"


def _split(decisions: list[Decision], batch: Sequence[_Job]) -> list[list[Decision]]:
    """Each request's own decisions."""
    if len(decisions) != sum(len(job.items) for job in batch):
        raise ValueError("not as many decisions as items")
    rest = iter(decisions)
    return [list(islice(rest, len(job.items))) for job in batch]


def _settle(future: "asyncio.Future[Answer]", answer: Answer | ScoringError) -> None:
    if future.done():
        return  # its client has gone
    if isinstance(answer, Answer):
        future.set_result(answer)
    else:
        future.set_exception(answer)
