"""The review page in Chromium, by keyboard alone: answers, undo, blurred pictures, hostile content, a killed server."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import uvicorn
from chromium import CONTRAST, HEIGHTS, Browser

from vigil_data.reviews.decisions import Decision
from vigil_monitoring.reviews.answer_file import open_answers
from vigil_monitoring.reviews.answers import read_reviews
from vigil_monitoring.reviews.content import QueueContent
from vigil_monitoring.reviews.page_server import create_app
from vigil_monitoring.reviews.page_session import ReviewSession
from vigil_monitoring.reviews.policy import load_policy

from .conftest import HOSTILE, RTL, ReviewCase

TOKEN = "token-0123456789abcdef"
WIDTHS = (390, 820, 1300)


class Opened(NamedTuple):
    """A page that is served by a thread of this process."""

    case: ReviewCase
    ids: list[str]
    base: str

    @property
    def decisions(self) -> list[Decision]:
        return read_reviews(self.case.folder / "reviews.jsonl", self.case.queue)

    @property
    def values(self) -> dict[tuple[str, str, str], float | None]:
        return {(of.id, of.label, of.reviewer): of.value for of in self.decisions}


@pytest.fixture(scope="module")
def browser(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(chromium, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def open_page(browser: Browser, make_case: Callable[..., ReviewCase]) -> Iterator[Callable[..., Opened]]:
    """Serve a review of some items and open its page; console output fails the test."""
    closing: list[Callable[[], Any]] = []

    def start(*ids: str, reviewer: str | None = "ann", case: ReviewCase | None = None) -> Opened:
        case = case or make_case(*ids)
        held = open_answers(case.folder / "reviews.jsonl", case.queue)
        answers = held.__enter__()
        content = QueueContent(case.queue, case.dataset)
        session = ReviewSession(case.queue, content, answers, load_policy(case.taxonomy, None, content.asked), reviewer=reviewer)
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(create_app(session, TOKEN), log_config=None, lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()

        def close() -> None:
            server.should_exit = True
            thread.join(20)
            held.__exit__(None, None, None)

        closing.append(close)
        opened = Opened(case, list(content.labels), f"http://127.0.0.1:{listener.getsockname()[1]}/#{TOKEN}")
        visit(browser, opened.base)
        return opened

    browser.messages.clear()
    yield start
    browser.call("Page.navigate", url="about:blank")
    for close in closing:
        close()
    assert browser.messages == []


def visit(browser: Browser, url: str, width: int = 1300, *, dark: bool = False) -> None:
    browser.call("Page.navigate", url="about:blank")
    browser.wait("location.href === 'about:blank'")
    browser.open(url, width, dark=dark)
    browser.wait("setup !== null && !busy")


def press(browser: Browser, *keys: str) -> None:
    for key in keys:
        browser.press(key, modifiers=8 if key in ("N", "?") else 0)
        browser.wait("!busy")


def shown_id(browser: Browser, opened: Opened) -> str:
    return opened.ids[browser.evaluate("order[place].item")]


def test_review_page_is_answered_by_keyboard_alone(browser: Browser, open_page: Callable[..., Opened]) -> None:
    opened = open_page("post-1", "post-3", reviewer=None)
    assert browser.evaluate("document.activeElement.id") == "name"
    browser.type("Ann Lee")
    browser.press("Enter", text="\r")
    browser.wait("current !== null && !busy")
    while shown_id(browser, opened) != "post-1":
        press(browser, "ArrowRight")
    assert browser.evaluate("document.activeElement.id") == "item-title"
    assert "Does the post advertise something that nobody asked for?" in browser.evaluate("byId('labels').innerText")
    assert "In reply to" in browser.evaluate("byId('segments').innerText")
    press(browser, "2", "y")
    assert browser.evaluate("byId('status').textContent") == "spam: yes"
    assert browser.evaluate("document.querySelector('.current legend').textContent") == "hate"
    press(browser, "c")
    assert shown_id(browser, opened) == "post-3", "the next item with open questions"
    assert browser.evaluate("byId('count').textContent") == "1 of 2 items answered"
    press(browser, "n")
    assert browser.evaluate("document.activeElement.id") == "done-title"
    assert opened.values == {
        ("post-1", "spam", "Ann Lee"): 1.0,
        ("post-1", "hate", "Ann Lee"): None,
        ("post-3", "hate", "Ann Lee"): 0.0,
    }
    assert [of.confidence for of in opened.decisions] == [0.75, None, None]
    assert {of.policy_version for of in opened.decisions} == {"house 3"}
    press(browser, "u")
    assert (shown_id(browser, opened), len(opened.values)) == ("post-3", 2)
    press(browser, "y", "ArrowLeft")
    while shown_id(browser, opened) != "post-1":
        press(browser, "ArrowLeft")
    press(browser, "k", "3", "u", "k", "n", "u")
    assert [(of.value, of.confidence) for of in opened.decisions if (of.id, of.label) == ("post-1", "spam")] == [(1.0, 0.75)]
    browser.press("?", modifiers=8)
    assert browser.evaluate("byId('keys').open")
    press(browser, "n")
    browser.press("Escape")
    assert opened.values["post-1", "spam", "Ann Lee"] == 1.0, "keys do not answer behind the list of keys"


def test_review_page_works_with_tab_and_enter_without_single_keys(browser: Browser, open_page: Callable[..., Opened]) -> None:
    opened = open_page("post-3", "post-1")
    while shown_id(browser, opened) != "post-3":
        press(browser, "ArrowRight")
    browser.press("?", modifiers=8)
    browser.press("Tab", modifiers=8)
    browser.press(" ")
    browser.press("Escape")
    press(browser, "y")
    assert opened.case.folder.joinpath("reviews.jsonl").read_text() == "", "single keys are off"
    for _ in range(12):
        browser.press("Tab")
        if browser.evaluate("document.activeElement.className") == "no":
            break
    browser.press("Enter", text="\r")
    browser.wait("!busy && 'spam' in current.answers")
    assert browser.evaluate("document.activeElement.closest('.current legend, .current') !== null"), (
        "focus stays in the questions"
    )
    browser.press("Enter", text="\r")
    browser.wait("!busy && order.some((entry) => entry.answered === 2)")
    assert opened.values == {("post-3", "spam", "ann"): 0.0, ("post-3", "hate", "ann"): 1.0}


def test_review_page_answers_no_to_the_open_questions(browser: Browser, open_page: Callable[..., Opened]) -> None:
    opened = open_page("post-1", "post-3", "post-2")
    while shown_id(browser, opened) != "post-3":
        press(browser, "ArrowRight")
    press(browser, "j", "y")
    assert opened.values == {("post-3", "hate", "ann"): 1.0}
    press(browser, "N")
    assert opened.values == {("post-3", "hate", "ann"): 1.0, ("post-3", "spam", "ann"): 0.0}
    assert shown_id(browser, opened) != "post-3"


def test_review_page_blurs_pictures_until_a_key_is_pressed(browser: Browser, open_page: Callable[..., Opened]) -> None:
    opened = open_page("post-2", "post-3")
    filtered = "getComputedStyle(document.querySelector('figure img')).filter"
    while shown_id(browser, opened) != "post-2":
        press(browser, "ArrowRight")
    browser.wait("document.querySelector('figure img').naturalWidth === 320")
    assert "blur(32px)" in browser.evaluate(filtered)
    press(browser, "m")
    assert browser.evaluate(filtered) == "none"
    assert browser.evaluate("byId('reveal').innerText").startswith("Blur pictures")
    press(browser, "ArrowRight" if browser.evaluate("place") == 0 else "ArrowLeft")
    assert browser.wait("document.querySelector('audio').duration > 0.9")
    assert browser.evaluate("document.querySelector('audio').paused && !document.querySelector('audio').autoplay")
    press(browser, "p")
    browser.wait("document.querySelector('audio').currentTime > 0")
    press(browser, "ArrowRight" if browser.evaluate("place") == 0 else "ArrowLeft")
    assert "blur(32px)" in browser.evaluate(filtered), "each item starts blurred"


def test_review_page_shows_hostile_content_as_text(browser: Browser, open_page: Callable[..., Opened]) -> None:
    opened = open_page("hostile", "broken", "=1+1")
    texts = "[...document.querySelectorAll('.text')].map((box) => box.textContent)"
    for _ in range(3):
        found = shown_id(browser, opened)
        if found == "hostile":
            marked = HOSTILE.replace("\u202e", "U+202E").replace("\u202c", "U+202C").replace("\u200b", "U+200B")
            assert browser.evaluate(texts) == [marked, RTL]
            assert browser.evaluate("document.querySelectorAll('#segments img, #segments script').length") == 0
            assert browser.evaluate("getComputedStyle(document.querySelectorAll('.text')[1]).direction") == "rtl"
        elif found == "broken":
            browser.wait("document.querySelector('.broken')")
            assert "This picture cannot be shown." in browser.evaluate("byId('segments').innerText")
        else:
            assert browser.evaluate(f"{texts}[0].length") == 10_000
            browser.evaluate("document.querySelector('.more').focus()")
            browser.press("Enter", text="\r")
            assert browser.evaluate(f"{texts}[0].length") == 29_000
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        press(browser, "ArrowRight")
    assert browser.evaluate("document.title") == "Vigil: review"


def test_review_page_measures_time_without_pauses(browser: Browser, open_page: Callable[..., Opened]) -> None:
    opened = open_page("post-1", "post-3")
    browser.evaluate("spent = 0; active = performance.now() - 3 * 60_000")
    press(browser, "y")
    [first] = opened.decisions
    assert first.minutes == pytest.approx(1, abs=0.05), "a pause counts as a minute at most"
    press(browser, "u")
    browser.evaluate("active = performance.now() - 30_000")
    press(browser, "n")
    [second] = opened.decisions
    assert second.minutes == pytest.approx(1.5, abs=0.1), "the time of the answer that was undone is not lost"


def test_review_page_reports_that_the_server_is_gone(browser: Browser, open_page: Callable[..., Opened]) -> None:
    open_page("post-1", "post-3")
    browser.evaluate("window.fetch = () => Promise.reject(new TypeError('no connection'))")
    press(browser, "y")
    assert "does not answer" in browser.evaluate("byId('error').innerText")
    assert browser.evaluate("Object.keys(current.answers).length") == 0, "an answer that is not stored is not shown"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True])
def test_review_page_fits_and_is_readable(browser: Browser, open_page: Callable[..., Opened], width: int, dark: bool) -> None:
    opened = open_page("post-2", "post-3", "hostile")
    visit(browser, opened.base, width, dark=dark)
    for keys in ((), ("1", "y"), ("m",), ("ArrowRight",), ("c",), ("?",)):
        press(browser, *keys)
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert browser.evaluate(CONTRAST)["low"] == []
        assert min(browser.evaluate(HEIGHTS)) >= 24
    darkest = browser.evaluate(CONTRAST)["darkest"]
    assert darkest < 60 if dark else darkest > 200
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    named = {"button", "textbox", "checkbox", "dialog", "group", "image", "Audio", "progressbar", "form", "region", "heading"}
    shown = [node for node in nodes if not node.get("ignored") and node["role"]["value"] in named]
    assert [node["role"]["value"] for node in shown if not node.get("name", {}).get("value")] == []


def test_review_continues_after_the_server_was_killed(
    browser: Browser, open_page: Callable[..., Opened], make_case: Callable[..., ReviewCase]
) -> None:
    case = make_case("post-1", "post-2", "post-3")
    file = case.folder / "reviews.jsonl"
    command = [sys.executable, "-m", "vigil", "monitor", "review", str(case.queue_file), "--dataset", str(case.dataset.path)]
    command += ["--to", str(file), "--taxonomy", str(case.taxonomy), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        printed = "".join(iter(lambda: process.stdout.read(1) if process.stdout else "", "#"))
        token = process.stdout.readline().strip()
        address = f"{printed.rpartition('open ')[2]}#{token}"
        for reviewer, key in (("ann", "y"), ("ben", "n"), ("ann", "y")):
            visit(browser, f"{address}&name={reviewer}")
            press(browser, key)
    finally:
        process.kill()
        process.communicate()
    assert [(of.reviewer, of.value) for of in read_reviews(file, case.queue)] == [("ann", 1.0), ("ben", 0.0), ("ann", 1.0)]
    press(browser, "y")
    assert "does not answer" in browser.evaluate("byId('error').innerText")
    browser.messages.clear()
    opened = open_page(case=case)
    press(browser, "c", "c", "c")
    assert browser.evaluate("document.activeElement.id") == "done-title"
    assert sum(of.reviewer == "ann" for of in opened.decisions) == 5
