"""All that a server is made of, put together: the bundle, the queue, the gate, the shadow and the counters."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from starlette.requests import Request

from vigil_data.errors import Failure, UserError
from vigil_data.items import Item
from vigil_serving.protocol.errors import RequestError, busy
from vigil_serving.server.admission import Gate
from vigil_serving.server.batching import Answer, Batcher
from vigil_serving.server.metrics import Telemetry
from vigil_serving.server.model_manager import Bundles, LoadedBundle, load
from vigil_serving.server.request_body import BodyMemoryBudget, read
from vigil_serving.server.settings import Settings
from vigil_serving.server.shadow import Shadow

_log = logging.getLogger("vigil.serve")

P = ParamSpec("P")
T = TypeVar("T")

INLINE = 32 * 1024
"""A body of no more bytes is parsed at once; a longer one in a thread, for the event loop must not wait."""


class Service:
    """One server's parts. They exist from the start; the bundle is loaded by :meth:`start`.

    Args:
        settings: how to serve.
        loading: loads a bundle from its folder; :func:`vigil_serving.server.model_manager.load` as the settings say if not given.
    """

    def __init__(self, settings: Settings, loading: Callable[[Path], LoadedBundle] | None = None) -> None:
        self.settings = settings
        self.telemetry = Telemetry()
        self._loading = loading or partial(
            load, variant=settings.variant, threads=settings.threads, public_key=settings.public_key
        )
        self.bundles = Bundles(settings.bundle, self._loading, self.telemetry)
        self.gate = Gate(lambda: self.bundles.ready)
        self.held = BodyMemoryBudget(settings.held_bytes)
        self.shadow: Shadow | None = None
        self.failed: Exception | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._parser = ThreadPoolExecutor(1, thread_name_prefix="parse")
        self._tasks: set[asyncio.Task[None]] = set()
        self.telemetry.watch_in_flight(lambda: self.gate.in_flight)

    async def start(self) -> None:
        """Begin to gather, and to load the bundles in the background; needs a running event loop."""
        self.batcher = Batcher(
            self.bundles.current,
            self.telemetry,
            max_batch=self.settings.max_batch,
            max_wait=self.settings.max_wait,
            queue=self.settings.queue,
            workers=self.settings.workers,
            scored=self._scored,
        )
        self.batcher.start()
        self._spawn(self._load_first())

    async def stop(self) -> None:
        """Stop scoring; whoever is to be answered was answered before (see :meth:`vigil_serving.server.admission.Gate.drain`)."""
        await self.batcher.stop()
        self._parser.shutdown(wait=False, cancel_futures=True)
        for task in self._tasks:
            task.cancel()
        if self.shadow is not None:
            await asyncio.to_thread(self.shadow.close)

    def reload_soon(self) -> None:
        """Read the bundle anew from the same place in the background; why it is refused is logged."""
        self._spawn(self._reload())

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """A request's body; until the block ends its bytes count as held.

        Raises:
            RequestError: if there is no room, or the body is too long, too slow or breaks off.
        """
        if self.batcher.full:
            raise busy("the queue is full; try again later")
        with self.held.reservation() as reservation:
            yield await read(request, self.settings.limits.bytes, self.settings.upload_seconds, reservation)

    async def parsed(self, size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Parse at once what is short; what is long in a thread, one after the other, for JSON can take twenty times its length.

        Args:
            size: bytes of what is parsed.
            function: parses.
            args: its arguments.
            kwargs: further ones.

        Raises:
            RequestError: whatever ``function`` refuses.
        """
        if size <= INLINE:
            return function(*args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._parser, partial(function, *args, **kwargs))

    async def score(self, request: Request, items: Sequence[Item]) -> Answer:
        """Have items scored for a request, unless its client goes away meanwhile.

        Args:
            request: its body has been read.
            items: what it asks for.

        Raises:
            RequestError: 429, if the queue is full.
            ScoringError: if scoring one of them failed.
        """
        scoring = asyncio.ensure_future(self.batcher.submit(items))
        leaving = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait({scoring, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not scoring.done():
                raise RequestError(400, "the client has gone", "gone")
            return scoring.result()
        finally:
            for task in (scoring, leaving):
                task.cancel()

    def _scored(self, items: Sequence[Item], answer: Answer) -> None:
        if self.shadow is not None:
            self.shadow.offer(items, answer)

    async def _load_first(self) -> None:
        begun = time.perf_counter()
        self.telemetry.watch_cache(self._cache_lookups)
        try:
            if self.settings.shadow is not None:
                loaded = await asyncio.to_thread(self._loading, self.settings.shadow)
                self.shadow = Shadow(loaded, self.settings.shadow_log, self.settings.shadow_tolerance, self.telemetry)
            await self.bundles.reload()
        except Exception as error:
            self.failed = error if isinstance(error, UserError | Failure) else Failure(f"cannot load: {type(error).__name__}")
            self.on_failure()
            return
        _log.info("ready after %.1f s", time.perf_counter() - begun)

    async def _reload(self) -> None:
        try:
            await self.bundles.reload()
        except UserError:
            return  # logged where it was refused
        except RequestError as refused:
            _log.error("not reloaded: %s", refused.line)

    def _cache_lookups(self) -> tuple[int, int]:
        if not self.bundles.ready:
            return 0, 0
        cache = self.bundles.current().scorer.cache
        return cache.hits, cache.misses

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
