"""Parts of a server: bundle, queue, admission, shadow and metrics."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from starlette.requests import Request

from vigil_data.errors import Failure, UserError
from vigil_data.items import Item
from vigil_serving.protocol.errors import RequestError, busy
from vigil_serving.server.access import AccessControl, ApiKeys
from vigil_serving.server.batching import Batcher, ScoringResult
from vigil_serving.server.metrics import ServerMetrics
from vigil_serving.server.middleware import AdmissionController
from vigil_serving.server.model_manager import LoadedBundle, ModelManager, load
from vigil_serving.server.request_body import BodyMemoryBudget, read_body
from vigil_serving.server.settings import ServerSettings
from vigil_serving.server.shadow import Shadow
from vigil_serving.traffic.options import TrafficLogOptions

if TYPE_CHECKING:
    from vigil_serving.traffic.writer import TrafficLog

_log = logging.getLogger("vigil.serve")

P = ParamSpec("P")
T = TypeVar("T")

MAX_INLINE_PARSE_BYTES = 32 * 1024
"""Longer bodies are parsed in a thread, so that they do not block the event loop."""


class Service:
    """Parts of one server; :meth:`start` loads the bundle.

    Args:
        settings: settings of the server.
        loading: loads a bundle from its folder (default: :func:`vigil_serving.server.model_manager.load` with the settings).

    Raises:
        UserError: if the API keys cannot be read, a host or an origin has another form, or the folder of the traffic log cannot
            be written.

    Attributes:
        failed: error of the first load, after which the server stops.
        on_failure: called when the first load failed.
    """

    def __init__(self, settings: ServerSettings, loading: Callable[[Path], LoadedBundle] | None = None) -> None:
        self.settings = settings
        self.metrics = ServerMetrics()
        own = partial(load, variant=settings.variant, threads=settings.threads, public_key=settings.public_key)
        self._load_shadow = loading or own  # with the texts of its own bundle
        self._loading = loading or partial(own, policy_text=settings.policy_text)
        self.models = ModelManager(settings.bundle, self._loading, self.metrics)
        keys = ApiKeys(settings.api_keys, settings.api_key_file) if settings.needs_key else None
        self.access = AccessControl(settings.host, keys, settings.allow_hosts, settings.allow_origins)
        self.admission = AdmissionController(lambda: self.models.ready)
        self.body_memory = BodyMemoryBudget(settings.body_memory_bytes)
        self.shadow: Shadow | None = None
        self._traffic = None if settings.log is None else _open_traffic_log(settings.log, self.metrics)
        self.failed: Exception | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._parser = ThreadPoolExecutor(1, thread_name_prefix="parse")
        self._tasks: set[asyncio.Task[None]] = set()
        self.metrics.watch_in_flight(lambda: self.admission.in_flight)

    async def start(self) -> None:
        """Start batching, and load the bundles in the background; needs a running event loop."""
        self.batcher = Batcher(
            self.models.current,
            self.metrics,
            max_batch=self.settings.max_batch,
            max_wait=self.settings.max_wait,
            queue=self.settings.queue,
            workers=self.settings.workers,
            on_scored=self._on_scored,
        )
        self.batcher.start()
        self._spawn(self._load_first())

    async def stop(self) -> None:
        """Stop scoring; call it after :meth:`~vigil_serving.server.middleware.AdmissionController.drain`."""
        await self.batcher.stop()
        self._parser.shutdown(wait=False, cancel_futures=True)
        for task in self._tasks:
            task.cancel()
        if self.shadow is not None:
            await asyncio.to_thread(self.shadow.close)
        if self._traffic is not None:
            await asyncio.to_thread(self._traffic.close)

    def reload_soon(self) -> None:
        """Reload the API keys, and the bundle from the same path in the background; a refusal is logged."""
        self.access.reread_keys()
        self._spawn(self._reload())

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Read a request's body; its bytes stay reserved until the block ends.

        Raises:
            RequestError: if there is no room, or the body is too long, too slow or incomplete.
        """
        if self.batcher.full:
            raise busy("the queue is full; try again later")
        with self.body_memory.reservation() as reservation:
            yield await read_body(request, self.settings.limits.bytes, self.settings.upload_seconds, reservation)

    async def parsed(self, size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Parse a body: a short one directly, a long one in a thread.

        Long bodies are parsed one after the other, since parsed JSON can take twenty times the memory of its text.

        Args:
            size: bytes of the body.
            function: the parser.
            args: its arguments.
            kwargs: its keyword arguments.

        Raises:
            RequestError: raised by ``function``.
        """
        if size <= MAX_INLINE_PARSE_BYTES:
            return function(*args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._parser, partial(function, *args, **kwargs))

    async def score(self, request: Request, items: Sequence[Item]) -> ScoringResult:
        """Score the items of a request, unless its client disconnects meanwhile.

        Args:
            request: its body has been read.
            items: the request's items.

        Raises:
            RequestError: 429, if the queue is full.
            ScoringError: if scoring one of the items failed.
        """
        scoring = asyncio.ensure_future(self.batcher.submit(items))
        disconnecting = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({scoring, disconnecting}, return_when=asyncio.FIRST_COMPLETED)
            if not scoring.done():
                raise RequestError(400, "the client has disconnected", "disconnected")
            return scoring.result()
        finally:
            for task in (scoring, disconnecting):
                task.cancel()

    def _on_scored(self, items: Sequence[Item], result: ScoringResult) -> None:
        if self.shadow is not None:
            self.shadow.offer(items, result)
        if self._traffic is not None:
            self._traffic.offer(items, result.decisions, result.loaded.origin("live"))

    def _on_shadow_scored(self, items: Sequence[Item], result: ScoringResult) -> None:
        if self._traffic is not None:
            self._traffic.offer(items, result.decisions, result.loaded.origin("shadow"))

    async def _load_first(self) -> None:
        start = time.perf_counter()
        self.metrics.watch_cache(self._cache_lookups)
        try:
            if self.settings.shadow is not None:
                loaded = await asyncio.to_thread(self._load_shadow, Path(self.settings.shadow))
                self.shadow = Shadow(
                    loaded,
                    self.settings.shadow_log,
                    self.settings.shadow_tolerance,
                    self.metrics,
                    on_scored=self._on_shadow_scored,
                )
            await self.models.reload()
        except Exception as error:
            self.failed = error if isinstance(error, UserError | Failure) else Failure(f"cannot load: {type(error).__name__}")
            self.on_failure()
            return
        _log.info("ready after %.1f s", time.perf_counter() - start)

    async def _reload(self) -> None:
        try:
            await self.models.reload()
        except UserError:
            return  # already logged
        except RequestError as refused:
            _log.error("not reloaded: %s", refused.line)

    def _cache_lookups(self) -> tuple[int, int]:
        if not self.models.ready:
            return 0, 0
        cache = self.models.current().scorer.cache
        return cache.hits, cache.misses

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _open_traffic_log(options: TrafficLogOptions, metrics: ServerMetrics) -> "TrafficLog":
    from vigil_serving.traffic.writer import TrafficLog  # needs pyarrow

    return TrafficLog(options, metrics.traffic)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
