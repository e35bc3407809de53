"""Shadow scoring: differences are logged without content, and responses are not affected."""

import json
import threading
import time

import pytest

from vigil_data.items import Item
from vigil_serving.runtime.decisions import Decision
from vigil_serving.server.batching import ScoringResult
from vigil_serving.server.metrics import ServerMetrics
from vigil_serving.server.model_manager import LoadedBundle
from vigil_serving.server.shadow import Shadow, differences

from .conftest import FakeScorer

LIVE = Decision("a", {"scam": 0.4, "promotion": 0.6}, ("promotion",), "text", "limit")


def counted(metrics: ServerMetrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"vigil_{name}_total", labels) or 0.0


@pytest.mark.parametrize(
    ("other", "of"),
    [
        (LIVE, ()),
        (Decision("a", {"scam": 0.4005, "promotion": 0.6}, ("promotion",), "text", "limit"), ()),
        (Decision("a", {"scam": 0.42, "promotion": 0.6}, ("promotion",), "text", "limit"), ("probability",)),
        (Decision("a", {"scam": 0.4}, ("promotion",), "text", "limit"), ("probability",)),
        (Decision("a", {"scam": 0.4, "promotion": 0.6}, (), "text", "allow"), ("labels", "action")),
        (Decision("a", {"scam": 0.4, "promotion": 0.6}, ("promotion",), "text", "limit", review=True), ("action",)),
        (Decision("a", {}, error="broken"), ("error", "labels", "action")),
    ],
)
def test_differences_between_two_decisions(other: Decision, of: tuple[str, ...]) -> None:
    assert differences(LIVE, other, 1e-3) == of


class OtherScorer(FakeScorer):
    """Returns a given decision; may wait or fail."""

    def __init__(self, decision: Decision, fails: bool = False) -> None:
        super().__init__(digest="e" * 64)
        self.decision, self.fails, self.go = decision, fails, threading.Event()
        self.go.set()

    def score(self, items):
        self.go.wait(10)
        if self.fails:
            raise ValueError("secret content")
        return [self.decision for _ in items]


def wait_until_counted(metrics: ServerMetrics, items: int) -> None:
    end = time.monotonic() + 5
    while sum(counted(metrics, "shadow_items", result=r) for r in ("same", "different", "dropped", "failed")) < items:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_shadow_logs_differences_without_content(tmp_path) -> None:
    metrics, log = ServerMetrics(), tmp_path / "shadow.jsonl"
    other = Decision("a", {"scam": 0.9, "promotion": 0.6}, ("scam", "promotion"), "text", "remove")
    shadow = Shadow(LoadedBundle(tmp_path, OtherScorer(other)), log, 1e-3, metrics)
    item = Item("a", ("secret words",), (b"secret picture",))
    shadow.offer([item], ScoringResult(LoadedBundle(tmp_path, FakeScorer()), [LIVE]))
    wait_until_counted(metrics, 1)
    shadow.close()
    [line] = log.read_text().splitlines()
    entry = json.loads(line)
    assert (entry["id"], entry["differs"]) == ("a", ["labels", "action", "probability"])
    assert (entry["live"]["digest"], entry["shadow"]["digest"]) == ("d" * 64, "e" * 64)
    assert entry["shadow"]["probabilities"]["scam"] == 0.9
    assert "secret" not in line
    assert counted(metrics, "shadow_items", result="different") == 1
    assert counted(metrics, "shadow_differences", of="labels") == 1


def test_shadow_counts_equal_decisions_without_logging(tmp_path) -> None:
    metrics, log = ServerMetrics(), tmp_path / "shadow.jsonl"
    shadow = Shadow(LoadedBundle(tmp_path, OtherScorer(LIVE)), log, 1e-3, metrics)
    shadow.offer([Item("a")] * 2, ScoringResult(LoadedBundle(tmp_path, FakeScorer()), [LIVE] * 2))
    wait_until_counted(metrics, 2)
    shadow.close()
    assert counted(metrics, "shadow_items", result="same") == 2
    assert not log.exists()


def test_shadow_keeps_counting_after_failures(tmp_path) -> None:
    metrics, scorer = ServerMetrics(), OtherScorer(LIVE, fails=True)
    shadow = Shadow(LoadedBundle(tmp_path, scorer), tmp_path, 1e-3, metrics)  # a folder cannot be a log file
    result = ScoringResult(LoadedBundle(tmp_path, FakeScorer()), [LIVE])
    shadow.offer([Item("a")], result)
    wait_until_counted(metrics, 1)
    assert counted(metrics, "shadow_items", result="failed") == 1
    scorer.fails, scorer.decision = False, Decision("a", {}, error="broken")
    shadow.offer([Item("a")], result)
    wait_until_counted(metrics, 3)  # different, and the line could not be written
    scorer.decision = LIVE
    shadow.offer([Item("a")], result)
    wait_until_counted(metrics, 4)
    shadow.close()
    assert counted(metrics, "shadow_items", result="same") == 1


def test_shadow_drops_items_instead_of_waiting(tmp_path) -> None:
    metrics, scorer = ServerMetrics(), OtherScorer(LIVE)
    scorer.go.clear()
    shadow = Shadow(LoadedBundle(tmp_path, scorer), None, 1e-3, metrics, max_requests=2, max_bytes=100)
    result = ScoringResult(LoadedBundle(tmp_path, FakeScorer()), [LIVE])
    for _ in range(50):
        shadow.offer([Item("a", ("x" * 10,))], result)
    shadow.offer([Item("a", ("x" * 200,))], result)
    assert counted(metrics, "shadow_items", result="dropped") >= 48
    scorer.go.set()
    wait_until_counted(metrics, 51)
    shadow.close()
    assert shadow._bytes == 0
