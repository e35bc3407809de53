"""A second bundle beside the first: it scores the same items after they were answered, and what it decides otherwise is logged.

It works in a thread of its own from a bounded queue. When that is full, items are passed over and counted; when the shadow fails,
that is counted too. Nothing of it reaches an answer. The log holds ids, labels, actions and probabilities, never content.
"""

import json
import logging
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vigil_data.items import Item
from vigil_serving.runtime.scorer import Decision
from vigil_serving.server.batching import Answer, origin
from vigil_serving.server.metrics import Telemetry
from vigil_serving.server.model_manager import LoadedBundle

_log = logging.getLogger("vigil.serve")


class _Waiting(NamedTuple):
    """Items of one request, and what was answered."""

    items: Sequence[Item]
    answer: Answer
    bytes: int


class Shadow:
    """Scores what was answered once more, with another bundle.

    Args:
        loaded: the other bundle.
        log: where differences are appended, one JSON object a line; only counted if ``None``.
        tolerance: the largest difference of a probability that is none.
        telemetry: counts.
        most_requests: requests that may wait.
        most_bytes: bytes of their media that may wait.
    """

    def __init__(
        self,
        loaded: LoadedBundle,
        log: Path | None,
        tolerance: float,
        telemetry: Telemetry,
        *,
        most_requests: int = 256,
        most_bytes: int = 64 << 20,
    ) -> None:
        self.loaded, self._log, self._tolerance, self._telemetry = loaded, log, tolerance, telemetry
        self._most_bytes, self._bytes, self._lock = most_bytes, 0, threading.Lock()
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(most_requests)
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, items: Sequence[Item], answer: Answer) -> None:
        """Have items scored once more when there is time, or pass over them; never waits."""
        size = sum(len(medium) for item in items for medium in (*item.text, *item.image, *item.audio))
        with self._lock:
            fits = self._bytes + size <= self._most_bytes
            if fits:
                try:
                    self._queue.put_nowait(_Waiting(items, answer, size))
                    self._bytes += size
                except queue.Full:
                    fits = False
        if not fits:
            self._telemetry.shadow("dropped", len(items))

    def close(self, seconds: float = 5.0) -> None:
        """Finish what waits, for a while at most."""
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
                self._telemetry.shadow("failed", len(waiting.items))
                _log.error("the shadow failed: %s", origin(error))
            finally:
                with self._lock:
                    self._bytes -= waiting.bytes
                del waiting

    def _compare(self, waiting: _Waiting) -> None:
        answer, lines = waiting.answer, []
        for live, shadow in zip(answer.decisions, self.loaded.scorer.score(waiting.items), strict=True):
            found = differences(live, shadow, self._tolerance)
            self._telemetry.shadow("different" if found else "same", 1)
            if found:
                self._telemetry.shadow_differences(found)
                lines.append(self._line(answer.loaded.digest, live, shadow, found))
        if lines and self._log is not None:
            with self._log.open("a", encoding="utf-8") as file:
                file.write("".join(lines))

    def _line(self, digest: str, live: Decision, shadow: Decision, found: Sequence[str]) -> str:
        said: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "id": live.id,
            "differs": list(found),
            "live": {"digest": digest, **_said(live)},
            "shadow": {"digest": self.loaded.digest, **_said(shadow)},
        }
        return json.dumps(said, ensure_ascii=False, allow_nan=False) + "\n"


def differences(live: Decision, shadow: Decision, tolerance: float) -> tuple[str, ...]:
    """In what two decisions on one item differ: ``labels``, ``action``, ``probability``, ``error``.

    Args:
        live: what was answered.
        shadow: what the other bundle says.
        tolerance: the largest difference of a probability that is none; a label that only one of them has is one.
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


def _said(decision: Decision) -> dict[str, Any]:
    return {
        "labels": list(decision.labels),
        "action": decision.action,
        "review": decision.review,
        "probabilities": {label: round(p, 6) for label, p in decision.probabilities.items()},
        "undecodable": decision.error is not None,
    }
