"""The shadow: differences are logged without content, and nothing of it touches an answer."""

import json
import threading
import time

import pytest

from vigil_data.items import Item
from vigil_serving.runtime.scorer import Decision
from vigil_serving.server.batching import Answer
from vigil_serving.server.metrics import Telemetry
from vigil_serving.server.model_manager import LoadedBundle
from vigil_serving.server.shadow import Shadow, differences

from .conftest import BentScorer

LIVE = Decision("a", {"scam": 0.4, "promotion": 0.6}, ("promotion",), "text", "limit")


def counted(telemetry: Telemetry, name: str, **labels: str) -> float:
    return telemetry.registry.get_sample_value(f"vigil_{name}_total", labels) or 0.0


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
def test_what_differs(other: Decision, of: tuple[str, ...]) -> None:
    assert differences(LIVE, other, 1e-3) == of


class OtherScorer(BentScorer):
    """Decides as told; may wait or fail."""

    def __init__(self, decision: Decision, fails: bool = False) -> None:
        super().__init__(digest="e" * 64)
        self.decision, self.fails, self.go = decision, fails, threading.Event()
        self.go.set()

    def score(self, items):
        self.go.wait(10)
        if self.fails:
            raise ValueError("secret content")
        return [self.decision for _ in items]


def settle(telemetry: Telemetry, items: int) -> None:
    end = time.monotonic() + 5
    while sum(counted(telemetry, "shadow_items", result=r) for r in ("same", "different", "dropped", "failed")) < items:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_differences_are_logged_without_content(tmp_path) -> None:
    telemetry, log = Telemetry(), tmp_path / "shadow.jsonl"
    other = Decision("a", {"scam": 0.9, "promotion": 0.6}, ("scam", "promotion"), "text", "remove")
    shadow = Shadow(LoadedBundle(tmp_path, OtherScorer(other)), log, 1e-3, telemetry)
    item = Item("a", ("secret words",), (b"secret picture",))
    shadow.offer([item], Answer(LoadedBundle(tmp_path, BentScorer()), [LIVE]))
    settle(telemetry, 1)
    shadow.close()
    [line] = log.read_text().splitlines()
    said = json.loads(line)
    assert (said["id"], said["differs"]) == ("a", ["labels", "action", "probability"])
    assert (said["live"]["digest"], said["shadow"]["digest"]) == ("d" * 64, "e" * 64)
    assert said["shadow"]["probabilities"]["scam"] == 0.9
    assert "secret" not in line
    assert counted(telemetry, "shadow_items", result="different") == 1
    assert counted(telemetry, "shadow_differences", of="labels") == 1


def test_agreement_is_counted_and_not_logged(tmp_path) -> None:
    telemetry, log = Telemetry(), tmp_path / "shadow.jsonl"
    shadow = Shadow(LoadedBundle(tmp_path, OtherScorer(LIVE)), log, 1e-3, telemetry)
    shadow.offer([Item("a")] * 2, Answer(LoadedBundle(tmp_path, BentScorer()), [LIVE] * 2))
    settle(telemetry, 2)
    shadow.close()
    assert counted(telemetry, "shadow_items", result="same") == 2
    assert not log.exists()


def test_a_failing_shadow_or_log_goes_on_counting(tmp_path) -> None:
    telemetry, scorer = Telemetry(), OtherScorer(LIVE, fails=True)
    shadow = Shadow(LoadedBundle(tmp_path, scorer), tmp_path, 1e-3, telemetry)  # a folder is no log
    answer = Answer(LoadedBundle(tmp_path, BentScorer()), [LIVE])
    shadow.offer([Item("a")], answer)
    settle(telemetry, 1)
    assert counted(telemetry, "shadow_items", result="failed") == 1
    scorer.fails, scorer.decision = False, Decision("a", {}, error="broken")
    shadow.offer([Item("a")], answer)
    settle(telemetry, 3)  # different, and the line could not be written
    scorer.decision = LIVE
    shadow.offer([Item("a")], answer)
    settle(telemetry, 4)
    shadow.close()
    assert counted(telemetry, "shadow_items", result="same") == 1


def test_a_slow_shadow_drops_and_never_waits(tmp_path) -> None:
    telemetry, scorer = Telemetry(), OtherScorer(LIVE)
    scorer.go.clear()
    shadow = Shadow(LoadedBundle(tmp_path, scorer), None, 1e-3, telemetry, most_requests=2, most_bytes=100)
    answer = Answer(LoadedBundle(tmp_path, BentScorer()), [LIVE])
    begun = time.monotonic()
    for _ in range(50):
        shadow.offer([Item("a", ("x" * 10,))], answer)
    shadow.offer([Item("a", ("x" * 200,))], answer)
    assert time.monotonic() - begun < 1
    assert counted(telemetry, "shadow_items", result="dropped") >= 48
    scorer.go.set()
    settle(telemetry, 51)
    shadow.close()
    assert shadow._bytes == 0
