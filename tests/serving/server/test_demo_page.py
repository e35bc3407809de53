"""Demo page in Chromium: keyboard, files, narrow screens, dark mode, and text that tries to become markup."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from chromium import CONTRAST, HEIGHTS, Browser
from PIL import Image

from .conftest import ServerProcess, launch

WIDTHS = (390, 820, 1300)


@pytest.fixture(scope="module")
def server_with_policy(strict: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose policy limits everything."""
    running = launch(strict, tmp_path_factory.mktemp("server_with_policy") / "log")
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture(scope="module")
def browser(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(chromium, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def page(browser: Browser, server_with_policy: ServerProcess) -> Iterator[Browser]:
    """The freshly opened page; console output fails the test."""
    browser.messages.clear()
    browser.open(server_with_policy.base + "/")
    browser.wait("bundle !== null")
    yield browser
    assert browser.messages == []


def decided(page: Browser) -> str:
    page.wait("!byId('decide').disabled && (!byId('decision').hidden || !byId('error').hidden)")
    return page.evaluate("byId('result').innerText")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    Image.new("RGB", (64, 48), (40, 120, 180)).save(tmp_path / "sea.png")
    soundfile.write(tmp_path / "tone.wav", 0.3 * np.sin(np.arange(8000) / 5), 8000)
    return [tmp_path / "sea.png", tmp_path / "tone.wav"]


def test_demo_page_decides_text_by_keyboard(page: Browser) -> None:
    page.evaluate("document.body.focus()")
    page.press("Tab")
    assert page.evaluate("document.activeElement.id") == "text"
    page.type("Call now and win a picture")
    page.press("Enter", modifiers=2)
    shown = decided(page)
    assert "limit" in shown
    assert "scam" in shown
    assert "so limit" in shown
    assert "Digest" in page.evaluate("byId('facts').innerText")
    order = []
    for _ in range(8):
        page.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert order[:3] == ["files", "SUMMARY", "decide"]
    assert "label" in order


def test_demo_page_shows_the_probabilities_of_the_api(page: Browser, server_with_policy: ServerProcess) -> None:
    page.evaluate("byId('text').focus()")
    page.type("Call now")
    page.evaluate("byId('decide').click()")
    decided(page)
    [decision] = server_with_policy.post("/v1/score", files={"text": (None, "Call now")}).json()["decisions"]
    shown = page.evaluate("[...document.querySelectorAll('.bars li')].map((row) => row.innerText.replace(/\\s+/g, ' '))")
    due = sorted(decision["probabilities"].items(), key=lambda pair: -pair[1])
    assert [row.split(" ")[0] for row in shown] == [label for label, _ in due]
    for row, (_, probability) in zip(shown, due, strict=True):
        assert f"{100 * probability:.1f} %" in row
    marks = page.evaluate("[...document.querySelectorAll('.track u')].map((mark) => mark.style.left)")
    assert marks == ["0.78125%"] * 3


def test_demo_page_shows_evidence_of_images_and_audio(page: Browser, files: list[Path], tmp_path: Path) -> None:
    page.evaluate("byId('text').focus()")
    page.type("A new deal \N{SLIGHTLY SMILING FACE} why not call now")
    (tmp_path / "notes.txt").write_text("no medium")
    page.choose("#files", *files, tmp_path / "notes.txt")
    page.wait("document.querySelectorAll('#chosen li').length === 2")
    assert "notes.txt" in page.evaluate("byId('error').innerText")
    page.evaluate("byId('decide').click()")
    shown = decided(page)
    assert "Image 1" in shown
    assert "0.0 to 0.3 s" in shown
    assert "modalities text+image+audio" in shown
    assert page.evaluate("document.querySelector('figure img').naturalWidth") == 64
    assert page.wait("document.querySelector('audio').duration > 0.9")
    marked = page.evaluate("[...document.querySelectorAll('mark')].map((mark) => mark.textContent).join('')")
    assert marked.startswith("A new deal \N{SLIGHTLY SMILING FACE} why"), "places are code points, not UTF-16"
    page.evaluate("document.querySelectorAll('.windows button')[1].click()")
    assert page.evaluate("document.querySelector('audio').currentTime") == pytest.approx(0.25, abs=0.3)
    page.evaluate("document.querySelector('#chosen button').click()")
    assert page.evaluate("document.querySelectorAll('#chosen li').length") == 1


def test_demo_page_accepts_dropped_files(page: Browser, files: list[Path]) -> None:
    page.evaluate(
        """(() => {
          const moved = new DataTransfer();
          moved.items.add(new File([new Uint8Array([1, 2, 3])], "broken.png", { type: "image/png" }));
          byId("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: moved, bubbles: true, cancelable: true }));
        })()"""
    )
    assert page.evaluate("document.querySelectorAll('#chosen li').length") == 1
    page.evaluate("byId('decide').click()")
    assert "Not decided: image[0]" in decided(page)
    assert page.evaluate("byId('error').getAttribute('role')") == "alert"


def test_demo_page_keeps_evidence_in_place_with_line_ends(page: Browser) -> None:
    page.evaluate("byId('text').value = 'one\\ntwo\\nthree'")
    page.evaluate("byId('decide').click()")
    assert "characters 0 to 13" in decided(page)


def test_demo_page_never_renders_text_as_markup(page: Browser) -> None:
    page.evaluate("byId('text').focus()")
    page.type('<img src=x onerror="document.title=`taken`"><script>document.title="taken"</script>')
    page.evaluate("byId('decide').click()")
    decided(page)
    assert page.evaluate("document.title") == "Vigil: try a bundle"
    assert page.evaluate("document.querySelectorAll('#decision script, #decision img').length") == 0
    assert "<img src=x" in page.evaluate("document.querySelector('.text').textContent")


def test_demo_page_blocks_injected_scripts(browser: Browser, server_with_policy: ServerProcess) -> None:
    browser.open(server_with_policy.base + "/")
    browser.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'document.title = 1' }))"
    )
    assert browser.evaluate("document.title") == "Vigil: try a bundle"
    browser.wait("true")
    assert any("Content Security Policy" in message for message in browser.messages)
    browser.messages.clear()


def test_demo_page_shows_errors_of_the_server(browser: Browser, strict: Path, tmp_path: Path) -> None:
    running = launch(strict, tmp_path / "log", "--max-characters", "50")
    try:
        browser.open(running.base + "/")
        browser.wait("bundle !== null")
        browser.evaluate("byId('text').value = 'word '.repeat(50)")
        browser.evaluate("byId('decide').click()")
        assert "more than 50 characters" in decided(browser)
        running.stop()
        browser.evaluate("byId('error').hidden = true; byId('decide').click()")
        assert "The server does not answer." in decided(browser)
    finally:
        running.process.kill()
        running.process.wait()
        browser.messages.clear()


def test_demo_page_asks_for_the_api_key(browser: Browser, strict: Path, tmp_path: Path) -> None:
    key = "page-key-0123456789"
    running = launch(strict, tmp_path / "log", environment={"VIGIL_API_KEY": key})
    try:
        browser.open(running.base + "/", 390)
        browser.wait("!byId('access').hidden && document.activeElement.id === 'key'")
        assert "needs an API key" in browser.evaluate("byId('facts').innerText")
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert browser.evaluate(CONTRAST)["low"] == []
        assert min(browser.evaluate(HEIGHTS)) >= 24
        browser.type("another-key-0123456")
        browser.evaluate("document.querySelector('#access button').click()")
        browser.wait("byId('facts').innerText.includes('the API key is wrong')")
        browser.evaluate("byId('key').value = ''")
        browser.type(key)
        browser.evaluate("document.querySelector('#access button').click()")
        browser.wait("bundle !== null")
        assert browser.evaluate("byId('access').hidden")
        browser.evaluate("byId('text').value = 'Call now'; byId('decide').click()")
        assert "limit" in decided(browser)
        stored = "JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])"
        assert key not in browser.evaluate(stored)
        assert browser.evaluate("byId('key').type") == "password"
    finally:
        running.process.kill()
        running.process.wait()
        browser.messages.clear()  # Chromium reports each 401


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True])
def test_demo_page_fits_and_is_readable(
    browser: Browser, server_with_policy: ServerProcess, files: list[Path], width: int, dark: bool
) -> None:
    browser.messages.clear()
    browser.open(server_with_policy.base + "/", width, dark=dark)
    browser.wait("bundle !== null")
    browser.evaluate("byId('text').value = 'Call now and win. '.repeat(20) + 'x'.repeat(200)")
    browser.choose("#files", *files)
    browser.wait("document.querySelectorAll('#chosen li').length === 2")
    browser.evaluate("byId('decide').click()")
    decided(browser)
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shot = browser.evaluate(CONTRAST)
    assert shot["darkest"] < 60 if dark else shot["darkest"] > 200
    assert shot["low"] == []
    assert min(browser.evaluate(HEIGHTS)) >= 24
    assert browser.messages == []


def test_demo_page_controls_have_accessible_names(page: Browser, files: list[Path]) -> None:
    page.choose("#files", *files)
    page.wait("document.querySelectorAll('#chosen li').length === 2")
    page.evaluate("byId('text').value = 'Call now'; byId('decide').click()")
    decided(page)
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    used = {"button", "textbox", "combobox", "Audio", "image", "list", "form", "region", "alert", "status", "heading"}
    nameless = [
        node["role"]["value"]
        for node in nodes
        if not node.get("ignored")
        and node["role"]["value"] in used - {"list", "alert", "status", "form", "region", "image"}
        and not node.get("name", {}).get("value")
    ]
    assert nameless == []
    names = {node["name"]["value"] for node in nodes if node.get("name", {}).get("value")}
    assert {"Text", "Decide", "Remove sea.png", "Remove tone.wav", "Evidence for", "Choose images or audio"} <= names
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate("byId('status').textContent").startswith("limit")


def test_demo_page_is_drawn(page: Browser, tmp_path: Path) -> None:
    """A blank page would have one colour."""
    page.screenshot(tmp_path / "page.png")
    colours = Image.open(io.BytesIO((tmp_path / "page.png").read_bytes())).convert("RGB").getcolors(1_000_000)
    assert len(colours) > 20
