"""Prometheus metrics; every server has its own registry."""

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from vigil_serving.runtime.decisions import Decision

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ServerMetrics:
    """Counters, gauges and histograms of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        def counter(name: str, description: str, *labels: str) -> Counter:
            return Counter(f"vigil_{name}", description, labels, registry=self.registry)

        def gauge(name: str, description: str, *labels: str) -> Gauge:
            return Gauge(f"vigil_{name}", description, labels, registry=self.registry)

        self._requests = counter("requests", "Requests answered", "route", "status")
        self._seconds = Histogram(
            "vigil_request_seconds", "Seconds from the head of a request to its response", ("route",), buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._batch = Histogram("vigil_batch_items", "Items scored together", buckets=ITEMS, registry=self.registry)
        self._items = counter("items", "Items decided, by presence of modalities", "presence")
        self._undecodable = counter("items_undecodable", "Items that could not be decoded")
        self._labels = counter("labels", "Labels whose threshold was reached", "label")
        self._actions = counter("actions", "Actions of the policy", "action")
        self._reviews = counter("reviews", "Items sent to human review by the policy")
        self._refused = counter("refused", "Requests refused, by reason", "reason")
        self._failures = counter("failures", "Failures while scoring")
        self._reloads = counter("reloads", "ModelManager loaded or refused", "result")
        self._info = gauge("bundle_info", "Bundle that decides", "name", "digest", "policy")
        self._shadow = counter("shadow_items", "Items offered to the shadow bundle", "result")
        self._shadow_differences = counter("shadow_differences", "Differences between live and shadow decisions", "of")
        self._traffic = {
            "rows": counter("traffic_rows", "Decisions written to the traffic log"),
            "dropped": counter("traffic_dropped", "Decisions that the traffic log dropped, since too many waited"),
            "failed": counter("traffic_failed", "Failed writes of the traffic log, which are tried again"),
            "bytes": counter("traffic_bytes", "Bytes written to segments of the traffic log"),
        }
        self._queue = gauge("queue_items", "Items waiting to be scored")
        self._in_flight = gauge("requests_in_flight", "Requests admitted and not answered yet")
        self._cache = gauge("cache_lookups", "Lookups of media in the embedding cache of the bundle that decides", "result")

    def text(self) -> bytes:
        """Return all metrics in Prometheus text format."""
        return generate_latest(self.registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, items: int) -> None:
        """Count a batch of items scored together."""
        self._batch.observe(items)

    def decided(self, decisions: Sequence[Decision]) -> None:
        """Count decisions."""
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
        """Count a refused request."""
        self._refused.labels(reason).inc()

    def failure(self) -> None:
        """Count a failure while scoring."""
        self._failures.inc()

    def reload(self, result: str) -> None:
        """Count a bundle that was ``loaded`` or ``refused``."""
        self._reloads.labels(result).inc()

    def set_bundle(self, name: str, digest: str, policy: str | None) -> None:
        """Set the bundle that decides."""
        self._info.clear()
        self._info.labels(name, digest, policy or "").set(1)

    def shadow(self, result: str, items: int) -> None:
        """Count items that were ``same``, ``different``, ``dropped`` or ``failed`` in the shadow."""
        self._shadow.labels(result).inc(items)

    def shadow_differences(self, of: Iterable[str]) -> None:
        """Count kinds of differences between live and shadow decisions."""
        for kind in of:
            self._shadow_differences.labels(kind).inc()

    def traffic(self, what: str, number: int) -> None:
        """Count ``rows``, ``dropped`` rows, ``failed`` writes or ``bytes`` of the traffic log."""
        self._traffic[what].inc(number)

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Set the function that gives the length of the queue."""
        self._queue.set_function(waiting)

    def watch_in_flight(self, count: Callable[[], int]) -> None:
        """Set the function that gives the number of open requests."""
        self._in_flight.set_function(count)

    def watch_cache(self, lookups: Callable[[], tuple[int, int]]) -> None:
        """Set the function that gives hits and misses of the cache."""
        self._cache.labels("hit").set_function(lambda: lookups()[0])
        self._cache.labels("miss").set_function(lambda: lookups()[1])
