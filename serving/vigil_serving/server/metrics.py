"""What Prometheus is told; every server has a registry of its own."""

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from vigil_serving.runtime.scorer import Decision

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Telemetry:
    """Counters, gauges and histograms of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"vigil_{name}", words, labels, registry=self.registry)

        def gauge(name: str, words: str, *labels: str) -> Gauge:
            return Gauge(f"vigil_{name}", words, labels, registry=self.registry)

        self._requests = counter("requests", "Requests answered", "route", "status")
        self._seconds = Histogram(
            "vigil_request_seconds", "Seconds from a request's head to its answer", ("route",), buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._batch = Histogram("vigil_batch_items", "Items scored together", buckets=ITEMS, registry=self.registry)
        self._items = counter("items", "Items decided, by the modalities that they have", "presence")
        self._undecodable = counter("items_undecodable", "Items that could not be decoded")
        self._labels = counter("labels", "Labels decided", "label")
        self._actions = counter("actions", "Actions of the policy", "action")
        self._reviews = counter("reviews", "Items that the policy sends to people")
        self._refused = counter("refused", "Requests refused, by reason", "reason")
        self._failures = counter("failures", "Failures while scoring")
        self._reloads = counter("reloads", "Bundles loaded or refused", "result")
        self._info = gauge("bundle_info", "The bundle that decides", "name", "digest", "policy")
        self._shadow = counter("shadow_items", "Items offered to the shadow", "result")
        self._shadow_differences = counter("shadow_differences", "In what the shadow decided otherwise", "of")
        self._queue = gauge("queue_items", "Items that wait to be scored")
        self._in_flight = gauge("requests_in_flight", "Requests accepted and not answered yet")
        self._cache = gauge("cache_lookups", "Media looked up in the cache of the bundle that decides", "result")

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, items: int) -> None:
        """So many items are scored together."""
        self._batch.observe(items)

    def decided(self, decisions: Sequence[Decision]) -> None:
        """Decisions were made."""
        for decision in decisions:
            if decision.error is not None:
                self._undecodable.inc()
                continue
            self._items.labels(decision.presence).inc()
            for label in decision.labels:
                self._labels.labels(label).inc()
            if decision.action is not None:
                self._actions.labels(decision.action).inc()
            if decision.review:
                self._reviews.inc()

    def refuse(self, reason: str) -> None:
        """A request was refused."""
        self._refused.labels(reason).inc()

    def failure(self) -> None:
        """Scoring failed."""
        self._failures.inc()

    def reload(self, result: str) -> None:
        """A bundle was ``loaded`` or ``refused``."""
        self._reloads.labels(result).inc()

    def serves(self, name: str, digest: str, policy: str | None) -> None:
        """Another bundle decides from now on."""
        self._info.clear()
        self._info.labels(name, digest, policy or "").set(1)

    def shadow(self, result: str, items: int) -> None:
        """Items were the ``same``, ``different``, ``dropped`` or ``failed`` in the shadow."""
        self._shadow.labels(result).inc(items)

    def shadow_differences(self, of: Iterable[str]) -> None:
        """The shadow decided otherwise."""
        for kind in of:
            self._shadow_differences.labels(kind).inc()

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Read the queue's length whenever it is asked for."""
        self._queue.set_function(waiting)

    def watch_in_flight(self, count: Callable[[], int]) -> None:
        """Read the number of open requests whenever it is asked for."""
        self._in_flight.set_function(count)

    def watch_cache(self, lookups: Callable[[], tuple[int, int]]) -> None:
        """Read hits and misses whenever they are asked for."""
        self._cache.labels("hit").set_function(lambda: lookups()[0])
        self._cache.labels("miss").set_function(lambda: lookups()[1])
