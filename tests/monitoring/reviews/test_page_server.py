"""The server of the page: who may ask, what it answers, and what it keeps to itself."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from vigil_data.errors import Failure
from vigil_monitoring.reviews.answer_file import AnswerFile, open_answers
from vigil_monitoring.reviews.answers import read_reviews, review_targets
from vigil_monitoring.reviews.content import QueueContent
from vigil_monitoring.reviews.page_server import create_app
from vigil_monitoring.reviews.page_session import ReviewSession
from vigil_monitoring.reviews.policy import load_policy

from .conftest import ITEMS, LABELS, ReviewCase

TOKEN = "token-0123456789abcdef"


class Page:
    """The API as the page uses it."""

    def __init__(self, case: ReviewCase, answers: AnswerFile, **more: Any) -> None:
        content = QueueContent(case.queue, case.dataset)
        self.ids = list(content.labels)
        session = ReviewSession(case.queue, content, answers, load_policy(case.taxonomy, None, content.asked), **more)
        self.client = TestClient(
            create_app(session, TOKEN), base_url="http://127.0.0.1:8030", headers={"Authorization": f"Bearer {TOKEN}"}
        )

    def get(self, path: str, **options: Any) -> Any:
        response = self.client.get(path, **options)
        assert response.status_code == 200, response.text
        return response.json()

    def order(self, reviewer: str) -> list[str]:
        return [self.ids[entry["item"]] for entry in self.get("/v1/items", params={"reviewer": reviewer})]

    def answer(self, id_: str, value: Any, **more: Any) -> httpx.Response:
        return self.post({"item": self.ids.index(id_), "value": value, **more})

    def post(self, change: dict[str, Any]) -> httpx.Response:
        body = {"reviewer": "ann", "item": 0, "label": "spam", "value": 1, "confidence": None, "minutes": 0.1}
        return self.client.post("/v1/answers", json={**body, **change})


@pytest.fixture
def case(make_case: Callable[..., ReviewCase]) -> ReviewCase:
    return make_case()


@pytest.fixture
def page(case: ReviewCase) -> Iterator[Page]:
    with open_answers(case.folder / "reviews.jsonl", case.queue) as answers:
        yield Page(case, answers)


@pytest.mark.parametrize(
    ("headers", "status", "line"),
    [
        ({"Authorization": ""}, 401, "Open the address that `vigil monitor review` printed"),
        ({"Authorization": "Bearer another-token-0123456"}, 401, "Open the address"),
        ({"Host": "reviews.example.com"}, 421, "this machine only"),
        ({"Origin": "https://elsewhere.example.com"}, 403, "pages of other sites are refused"),
    ],
)
def test_create_app_refuses_foreign_requests(page: Page, headers: dict[str, str], status: int, line: str) -> None:
    for response in (page.client.get("/v1/setup", headers=headers), page.client.post("/v1/answers", headers=headers, json={})):
        assert (response.status_code, line in response.json()["error"]) == (status, True)
        assert "Access-Control-Allow-Origin" not in response.headers


def test_create_app_serves_a_page_that_runs_only_its_own_script(page: Page) -> None:
    response = page.client.get("/", headers={"Authorization": ""})
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert response.headers["X-Frame-Options"] == "DENY"
    assert TOKEN not in response.text
    assert page.get("/v1/setup")["policy_version"] == "house 3"


def test_order_is_random_by_reviewer_and_stays(page: Page) -> None:
    ann, ben = page.order("ann"), page.order("ben")
    assert sorted(ann) == sorted(ben) == sorted(item.id for item in ITEMS)
    assert ann != ben
    assert page.order("ann") == ann


def test_items_do_not_show_why_they_were_chosen(page: Page, case: ReviewCase) -> None:
    shown = json.dumps([page.get("/v1/setup"), *(page.get(f"/v1/items/{n}", params={"reviewer": "ann"}) for n in range(6))])
    shown += json.dumps(page.get("/v1/items", params={"reviewer": "ann"}))
    assert "who wants some?" in shown
    for hidden in ("gold", "estimate", "inclusion", "stratum", "probability", "0.75", "post-1"):
        assert hidden not in shown
    with open_answers(case.folder / "others.jsonl", case.queue) as answers:
        scores = Page(case, answers, show_scores=True).get("/v1/items/0", params={"reviewer": "ann"})["scores"]
    assert scores == {"spam": 0.75}


def test_media_have_the_type_of_their_bytes(page: Page) -> None:
    picture = page.client.get("/v1/items/1/image/1")
    assert (picture.headers["Content-Type"], picture.content) == ("image/png", ITEMS[1].image[1])
    assert picture.headers["X-Content-Type-Options"] == "nosniff"
    assert page.client.get("/v1/items/2/audio/0").headers["Content-Type"] == "audio/wav"
    for path in ("/v1/items/1/image/2", "/v1/items/9/image/0", "/v1/items/1/text/0", "/v1/items/1/columns/0"):
        assert page.client.get(path).status_code == 404


def test_answer_is_stored_with_time_policy_and_minutes(page: Page, case: ReviewCase) -> None:
    file = case.folder / "reviews.jsonl"
    assert page.answer("post-1", 1, confidence=0.75).json() == {"answered": 1, "minutes": 0.0}
    [stored] = read_reviews(file, case.queue, "house 3")
    assert (stored.id, stored.value, stored.reviewer, stored.confidence, stored.minutes) == ("post-1", 1.0, "ann", 0.75, 0.1)
    page.answer("post-1", "cannot tell")
    [changed] = read_reviews(file, case.queue)
    assert (changed.value, changed.minutes) == (None, 0.2), "the time of both is counted"
    assert page.get("/v1/items/0", params={"reviewer": "ann"})["answers"] == {
        "spam": {"value": "cannot tell", "confidence": None}
    }
    assert page.get("/v1/items/0", params={"reviewer": "ben"})["answers"] == {}
    page.answer("post-1", 0, reviewer="ben")
    assert page.answer("post-1", None).json() == {"answered": 0, "minutes": 0.2}
    assert [of.reviewer for of in read_reviews(file, case.queue)] == ["ben"]


@pytest.mark.parametrize(
    ("change", "status", "line"),
    [
        ({"value": 0.5}, 422, 'value: must be 1, 0, "cannot tell" or null'),
        ({"value": True}, 422, "value: must be"),
        ({"confidence": 2}, 422, "confidence: must be a number from 0 to 1, or null"),
        ({"minutes": -1}, 422, "minutes: must be a number of at least 0"),
        ({"minutes": None}, 422, "minutes: must be"),
        ({"label": "scam"}, 422, "label: is not asked for this item"),
        ({"item": 99}, 404, "no such item"),
        ({"item": "0"}, 404, "no such item"),
        ({"reviewer": " ann"}, 422, "reviewer: must be a name without spaces around it"),
        ({"reviewer": "a\u202enn"}, 422, "reviewer: must not have control characters"),
        ({"reviewer": "a" * 81}, 422, "reviewer: must have at most 80 characters"),
        ({"reviewer": "x" * 5000}, 413, "an answer has at most 4096 bytes"),
        ({"time": "2026-11-02"}, 422, "an answer is an object with"),
    ],
)
def test_answer_refuses_what_is_none(page: Page, case: ReviewCase, change: dict[str, Any], status: int, line: str) -> None:
    response = page.post(change)
    assert response.status_code == status
    assert response.json()["error"].startswith(line)
    assert (case.folder / "reviews.jsonl").read_text() == ""


def test_answer_that_cannot_be_stored_is_an_error(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise Failure("reviews.jsonl: cannot be written: No space left on device; free some space")

    with monkeypatch.context() as patch:
        patch.setattr(AnswerFile, "put", fail)
        response = page.answer("post-1", 1)
    assert response.status_code == 507
    assert response.json()["error"].startswith("not stored: reviews.jsonl: cannot be written: No space left")
    assert page.answer("post-1", 1).status_code == 200


def test_answer_of_an_adjudicator_settles_in_the_order_of_the_queue(case: ReviewCase) -> None:
    file = case.folder / "reviews.jsonl"
    with open_answers(file, case.queue) as answers:
        Page(case, answers).answer("post-1", 1)
        page = Page(case, answers, adjudicates=True)
        assert page.order("ann") == [item.id for item in ITEMS]
        assert page.get("/v1/items/0", params={"reviewer": "ann"})["answers"] == {}, (
            "those of a reviewer are not an adjudicator's"
        )
        page.answer("post-1", 0)
    decisions = read_reviews(file, case.queue)
    assert [(of.value, of.adjudicated) for of in decisions] == [(1.0, False), (0.0, True)]
    assert review_targets(case.queue, decisions, ["spam"]).value_NL[0, 0] == 0


def test_serve_for_one_reviewer_refuses_others(case: ReviewCase) -> None:
    with open_answers(case.folder / "reviews.jsonl", case.queue) as answers:
        page = Page(case, answers, reviewer="ann")
        assert page.get("/v1/setup")["reviewer"] == "ann"
        assert page.answer("post-1", 1, reviewer="ben").status_code == 403
        assert page.answer("post-1", 1).status_code == 200
    assert case.queue.record.labels == LABELS
