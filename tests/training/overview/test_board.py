"""The board in a browser: curves, filter, keyboard, and a reload that keeps what was chosen."""

import json
import re
import time
from contextlib import suppress
from pathlib import Path

import pytest
from chromium import CONTRAST, Browser
from hypothesis import given
from hypothesis import strategies as st
from run_folders import curve, make_run

from vigil_training.overview.board import (
    MAX_CLOCK_POINTS,
    MAX_POINTS,
    BoardReader,
    _script_json,
    duration_text,
    make_charts,
    write_board,
)
from vigil_training.overview.selection import select
from vigil_training.overview.summary import read_all

HOSTILE = "<img src=x onerror=alert(1)>'\" & " + "x" * 60


@pytest.fixture(scope="module")
def browser(chromium, tmp_path_factory):
    browser = Browser(chromium, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("board") / "runs"
    make_run(
        folder / "a",
        lines=curve(1000, 0.7, hours=2.5),
        epoch_ends=(400, 800, 1200),
        evaluation={"average_precision": 0.7, "auroc": 0.9},
    )
    make_run(folder / "b", lines=curve(2000, 0.9), state="failed", number=1)
    make_run(folder / "lr" / "trials" / "0001", lines=curve(50, 0.6), state="preempted", number=2)
    (folder / "lr" / "sweep.html").write_text("page")
    make_run(folder / HOSTILE, lines=[{"step": 1, "train/loss": 0.5}], number=3)
    make_run(folder / "new", number=4, state="interrupted")
    return folder


def write(folder: Path, to: Path, refresh: float = 0.0) -> str:
    reader = BoardReader([folder])
    runs = select(reader.read())
    write_board(runs, reader.curves(runs), to, title="runs", refresh_seconds=refresh)
    return to.read_text(encoding="utf-8")


def wait_over_reloads(browser: Browser, condition: str) -> None:
    """Wait until an expression is true; a reload ends the call that it meets."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with suppress(AssertionError):
            if browser.evaluate(condition):
                return
        time.sleep(0.05)
    raise AssertionError(condition)


def visible(browser: Browser) -> list[str]:
    names = "[...document.querySelectorAll('tr[data-run]')].filter((row) => !row.hidden).map((row) => row.cells[0].dataset.value)"
    return browser.evaluate(names)


@pytest.mark.parametrize("dark", [False, True])
def test_board_fits_every_width_and_has_contrast(folder, browser, dark):
    write(folder, folder.parent / "board.html")
    for width in (390, 900, 1400):
        browser.open((folder.parent / "board.html").as_uri(), width, dark=dark)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate(CONTRAST)["low"] == []
        outside = """[...document.querySelectorAll("svg text")].filter((text) => {
          const own = text.getBoundingClientRect(), plot = text.ownerSVGElement.getBoundingClientRect();
          return own.left < plot.left - 1 || own.right > plot.right + 1;
        }).map((text) => text.textContent)"""
        assert browser.evaluate(outside) == []
    assert browser.evaluate("document.querySelectorAll('[data-chart]').length") == 3
    assert browser.evaluate(
        "[...document.querySelectorAll('[data-chart] svg')].map((svg) => svg.querySelectorAll('path').length)"
    ) == [3, 4, 3]
    assert browser.messages == []


def test_board_filters_by_text_state_and_group_and_draws_what_is_left(folder, browser):
    write(folder, folder.parent / "board.html")
    browser.open((folder.parent / "board.html").as_uri())
    assert visible(browser) == ["new", HOSTILE, "lr/trials/0001", "b", "a"]
    browser.evaluate("document.getElementById('filter-text').focus()")
    browser.type("posts@3 DISK")
    assert visible(browser) == ["b"]
    assert browser.evaluate("document.getElementById('shown').textContent") == "1 of 5 runs"
    assert browser.evaluate("document.querySelector('[data-chart] svg').querySelectorAll('path').length") == 1
    choose = "(() => {{ const s = document.getElementById('{}'); s.value = '{}'; s.dispatchEvent(new Event('change')); }})()"
    browser.evaluate(
        "(() => { const i = document.getElementById('filter-text'); i.value = ''; i.dispatchEvent(new Event('input')); })()"
    )
    browser.evaluate(choose.format("filter-group", "lr"))
    assert visible(browser) == ["lr/trials/0001"]
    browser.evaluate(choose.format("filter-state", "finished"))
    assert visible(browser) == []


def test_board_is_read_with_the_keyboard(folder, browser):
    """Values under the cursor are those of metrics.jsonl."""
    write(folder, folder.parent / "keyboard.html")  # The browser keeps what was chosen, by address.
    browser.open((folder.parent / "keyboard.html").as_uri())
    caption = "document.querySelector('[data-chart=\"0\"] figcaption').textContent"
    browser.evaluate("document.querySelector('[data-chart=\"0\"] svg').focus()")
    browser.press("ArrowLeft")
    assert browser.evaluate(caption) == "lr/trials/0001 step 50: 0.6"
    browser.press("ArrowDown")
    assert browser.evaluate(caption) == "b step 50: 0.0225"
    browser.press("ArrowRight")
    assert browser.evaluate(caption) == "b step 100: 0.045"
    assert browser.evaluate("document.querySelector('tr.lit').cells[0].dataset.value") == "b"
    assert browser.evaluate("document.querySelectorAll('path.lit').length") == 3


def test_board_switches_between_steps_epochs_and_hours(folder, browser):
    write(folder, folder.parent / "axes.html")
    browser.open((folder.parent / "axes.html").as_uri())
    choose = "(() => {{ const s = document.getElementById('axis'); s.value = '{}'; s.dispatchEvent(new Event('change')); }})()"
    figure = "document.querySelector('[data-chart=\"1\"]')"
    caption, label = f"{figure}.querySelector('figcaption').textContent", f"{figure}.querySelector('svg').ariaLabel"
    assert browser.evaluate(f"{figure}.querySelector('h4').textContent").startswith("train/loss")
    assert "of 4 runs, over optimizer steps, up to 2000" in browser.evaluate(label)
    assert browser.evaluate("document.getElementById('undrawn').textContent") == ""
    for axis, last, shown in (("epoch", "epochs, up to 2.5", "epoch 2.5"), ("hours", "hours of training, up to 2.5", "2.5 h")):
        browser.evaluate(choose.format(axis))
        assert f"train/loss of 1 runs, over {last}" in browser.evaluate(label)
        undrawn = browser.evaluate("document.getElementById('undrawn').textContent")
        assert undrawn == f"3 runs without {last.partition(',')[0]} are left out"
        browser.evaluate(f"{figure}.querySelector('svg').focus()")
        browser.press("ArrowLeft")
        assert browser.evaluate(caption) == f"a {shown}, step 1,000: 0.1"
        for _ in range(60):
            browser.press("ArrowLeft")
        assert browser.evaluate(caption) == f"a {'epoch 1' if axis == 'epoch' else '1 h'}, step 400: 0.64"
    make_run(folder.parent / "old" / "a", lines=curve(100))
    write(folder.parent / "old", folder.parent / "old.html")
    browser.open((folder.parent / "old.html").as_uri())
    disabled = "[...document.getElementById('axis').options].map((option) => option.disabled)"
    assert browser.evaluate(disabled) == [False, True, True]
    assert browser.messages == []


def test_board_curves_bound_the_clocks_of_many_runs(folder):
    reader = BoardReader([folder])
    [run] = [run for run in reader.read() if run.name == "a"]
    assert reader.curves([run]).clocks[0][-1] == (1000, 2.5)
    clocks = reader.curves([run] * 2000).clocks
    assert sum(map(len, clocks)) <= 1.3 * MAX_CLOCK_POINTS
    assert all(hours == pytest.approx(2.5 * step / 1000) for step, hours in clocks[7])


def test_board_reloads_itself_and_keeps_what_was_chosen(folder, browser, tmp_path):
    make_run(tmp_path / "runs" / "a", lines=curve(100, hours=1.0), state="open")
    make_run(tmp_path / "runs" / "b", lines=curve(100), number=1)
    page = tmp_path / "board.html"
    write(tmp_path / "runs", page, refresh=1.0)
    browser.open(page.as_uri(), 390)
    browser.evaluate("document.querySelector('tr[data-run=\"0\"] input').click()")
    browser.evaluate("document.querySelector('th button').click()")
    browser.evaluate("document.getElementById('filter-text').focus()")
    browser.type("posts")
    browser.evaluate("document.getElementById('logarithmic').click()")
    browser.evaluate("document.getElementById('axis').value = 'hours'")
    browser.evaluate("scrollTo(0, 300)")
    make_run(tmp_path / "runs" / "0", lines=curve(300), number=2)
    write(tmp_path / "runs", page)  # the last writing
    wait_over_reloads(browser, "document.readyState === 'complete' && document.querySelectorAll('tr[data-run]').length === 3")
    assert visible(browser) == ["0", "a", "b"]
    assert browser.evaluate(
        "[...document.querySelectorAll('tr[data-run]')].map((row) => row.querySelector('input').checked)"
    ) == [True, True, False]
    assert browser.evaluate("document.getElementById('filter-text').value") == "posts"
    assert browser.evaluate("document.getElementById('logarithmic').checked")
    assert browser.evaluate("document.getElementById('axis').value") == "hours"
    assert browser.evaluate("document.activeElement.id") == "filter-text"
    assert browser.evaluate("scrollY") == 300


def test_board_says_that_it_is_no_longer_written(folder, browser, tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1_000_000.0)
    write(folder, tmp_path / "board.html", refresh=1.0)
    browser.open((tmp_path / "board.html").as_uri())
    browser.wait("!document.getElementById('outdated').hidden")
    assert "no longer written" in browser.evaluate("document.getElementById('outdated').textContent")


def test_board_links_reports_and_sweeps_and_loads_nothing(folder):
    page = write(folder, folder.parent / "elsewhere" / "board.html") if (folder.parent / "elsewhere").mkdir() is None else ""
    links = set(re.findall(r'(?:src|href)="(?!#|data:)([^"]*)"', page))
    assert links == {"../runs/a/evaluation/test/report.html", "../runs/lr/sweep.html"}
    assert all((folder.parent / "elsewhere" / link).is_file() for link in links)
    assert "default-src 'none'" in page
    assert "<img" not in page


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_script_json_ends_no_element_and_reads_back(value):
    text = str(_script_json(value))
    assert not set(text) & set("<>&")
    assert json.loads(text) == value


def test_make_charts_bounds_the_points_of_many_long_runs():
    long = {name: [(step, float(step % 97)) for step in range(3000)] for name in ("train/loss", "train/lr", "speed/items")}
    charts = make_charts([long] * 200)
    points = sum(len(steps) for chart in charts for _, steps, _ in chart.curves)
    assert 0.5 * MAX_POINTS < points <= 1.1 * MAX_POINTS
    assert all(max(values) == 96 for chart in charts for _, _, values in chart.curves)
    assert [chart.name for chart in charts] == ["train/loss", "train/lr", "speed/items"]


def test_make_charts_draws_labels_only_where_asked():
    curves = {
        "validation/ap/spam": [(1, 0.5)],
        "validation/recall@5": [(1, 0.5)],
        "validation/recall@5/text-image": [(1, 1)],
        "own": [(1, 2)],
    }
    assert [chart.name for chart in make_charts([curves])] == ["validation/recall@5"]
    assert [chart.name for chart in make_charts([curves], ["*/ap/*", "own"])] == [
        "validation/ap/spam",
        "validation/recall@5",
        "own",
    ]


def test_board_reader_reads_a_file_again_only_when_it_has_changed(folder, monkeypatch, tmp_path):
    make_run(tmp_path / "runs" / "a", lines=curve(100))
    reader, read = BoardReader([tmp_path / "runs"]), []
    from vigil_training.overview import board

    original = board.read_curves
    monkeypatch.setattr(board, "read_curves", lambda run: read.append(run.name) or original(run))
    for extra in ("", "", '{"step": 110, "train/loss": 7.0}\n'):
        with (tmp_path / "runs" / "a" / "metrics.jsonl").open("a") as file:
            file.write(extra)
        charts = reader.curves(read_all([tmp_path / "runs"])).charts
    assert read == ["a", "a"]
    assert next(chart for chart in charts if chart.name == "train/loss").curves[0][2][-1] == 7


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0.4, "0 s"), (59.4, "59 s"), (3599, "59 min"), (3900, "1 h 05"), (180_000, "2 d 2 h")]
)
def test_duration_text(seconds, text):
    assert duration_text(seconds) == text
