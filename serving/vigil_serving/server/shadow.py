"""Shadow scoring: a second bundle scores the same items after they were answered, and different decisions are logged.

The shadow runs in its own thread with a bounded queue. If the queue is full, items are dropped and counted; failures are counted
too. Responses are never affected. The log has ids, labels, actions and probabilities, never content.
"""

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vigil_data.filesystem import StrPath
from vigil_data.items import Item
from vigil_serving.protocol.errors import traceback_summary
from vigil_serving.runtime.decisions import Decision
from vigil_serving.server.batching import ScoringResult
from vigil_serving.server.metrics import ServerMetrics
from vigil_serving.server.model_manager import LoadedBundle

_log = logging.getLogger("vigil.serve")


class _ShadowRequest(NamedTuple):
    """Items of an answered request, and its decisions."""

    items: Sequence[Item]
    result: ScoringResult
    bytes: int


class Shadow:
    """Scores answered items with a second bundle and compares the decisions.

    Args:
        loaded: the second bundle.
        log: file to which differences are appended, one JSON object a line (default: differences are only counted).
        tolerance: largest difference of a probability that does not count.
        metrics: counts items and differences.
        on_scored: called in the shadow's thread with the items and the shadow's decisions.
        max_requests: maximum requests waiting.
        max_bytes: maximum bytes of media waiting.
    """

    def __init__(
        self,
        loaded: LoadedBundle,
        log: StrPath | None,
        tolerance: float,
        metrics: ServerMetrics,
        *,
        on_scored: Callable[[Sequence[Item], ScoringResult], None] = lambda *_: None,
        max_requests: int = 256,
        max_bytes: int = 64 << 20,
    ) -> None:
        self.loaded, self._tolerance, self._metrics, self._on_scored = loaded, tolerance, metrics, on_scored
        self._log = None if log is None else Path(log)
        self._max_bytes, self._bytes, self._lock = max_bytes, 0, threading.Lock()
        self._queue: queue.Queue[_ShadowRequest | None] = queue.Queue(max_requests)
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, items: Sequence[Item], result: ScoringResult) -> None:
        """Queue the items of a request, or drop them if the queue is full; never waits."""
        size = sum(len(medium) for item in items for medium in (*item.text, *item.image, *item.audio))
        with self._lock:
            fits = self._bytes + size <= self._max_bytes
            if fits:
                try:
                    self._queue.put_nowait(_ShadowRequest(items, result, size))
                    self._bytes += size
                except queue.Full:
                    fits = False
        if not fits:
            self._metrics.shadow("dropped", len(items))

    def close(self, seconds: float = 5.0) -> None:
        """Score what is waiting, for at most ``seconds``."""
        try:
            self._queue.put(None, timeout=seconds)
        except queue.Full:
            return
        self._thread.join(seconds)

    def _run(self) -> None:
        while (waiting := self._queue.get()) is not None:
            try:
                self._compare(waiting)
            except Exception as error:
                self._metrics.shadow("failed", len(waiting.items))
                _log.error("the shadow failed: %s", traceback_summary(error))
            finally:
                with self._lock:
                    self._bytes -= waiting.bytes
                del waiting

    def _compare(self, waiting: _ShadowRequest) -> None:
        result, lines = waiting.result, []
        decisions = self.loaded.scorer.score(waiting.items)
        self._on_scored(waiting.items, ScoringResult(self.loaded, decisions))
        for live, shadow in zip(result.decisions, decisions, strict=True):
            found = differences(live, shadow, self._tolerance)
            self._metrics.shadow("different" if found else "same", 1)
            if found:
                self._metrics.shadow_differences(found)
                lines.append(self._line(result.loaded.digest, live, shadow, found))
        if lines and self._log is not None:
            with self._log.open("a", encoding="utf-8") as file:
                file.write("".join(lines))

    def _line(self, digest: str, live: Decision, shadow: Decision, found: Sequence[str]) -> str:
        entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "id": live.id,
            "differs": list(found),
            "live": {"digest": digest, **_summary(live)},
            "shadow": {"digest": self.loaded.digest, **_summary(shadow)},
        }
        return json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"


def differences(live: Decision, shadow: Decision, tolerance: float) -> tuple[str, ...]:
    """Return the kinds of differences between two decisions on an item: ``error``, ``labels``, ``action``, ``probability``.

    Args:
        live: decision that was returned.
        shadow: decision of the shadow.
        tolerance: largest difference of a probability that does not count; a label that only one bundle has counts.
    """
    found = []
    if (live.error is None) != (shadow.error is None):
        found.append("error")
    if set(live.labels) != set(shadow.labels):
        found.append("labels")
    if (live.action, live.review) != (shadow.action, shadow.review):
        found.append("action")
    a, b = live.probabilities, shadow.probabilities
    if a and b and (set(a) != set(b) or any(abs(a[label] - b[label]) > tolerance for label in a)):
        found.append("probability")
    return tuple(found)


def _summary(decision: Decision) -> dict[str, Any]:
    return {
        "labels": list(decision.labels),
        "action": decision.action,
        "review": decision.review,
        "probabilities": {label: round(p, 6) for label, p in decision.probabilities.items()},
        "undecodable": decision.error is not None,
    }
