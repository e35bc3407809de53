"""The report: one file that fetches nothing, runs nothing of the table's, and fits a phone; checked in a real browser."""

import html
import json
import re
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vigil_evaluation.findings import evaluate
from vigil_evaluation.metrics import average_precision
from vigil_evaluation.report import render
from vigil_evaluation.report.charts import charts, x, y
from vigil_evaluation.report.summary import highlights, mistakes
from vigil_evaluation.specs import EvaluationSpec

Make = Callable[..., pa.Table]
LABELS = ("tobacco", "scams", "unlabelled")
THRESHOLDS = {"tobacco": 0.5, "scams": 0.61, "unlabelled": 0.5}
HOSTILE = '<script>window.hacked=1</script><img src=x onerror="window.hacked=1">\'"&{{7*7}}' + "W" * 200


def report(table: pa.Table, to: Path, *slices: str, **facts: str) -> str:
    spec = EvaluationSpec(slices=slices)
    labels = [name.removeprefix("target.") for name in table.column_names if name.startswith("target.")]
    render(evaluate(table, labels, {label: THRESHOLDS.get(label, 0.5) for label in labels}, spec, facts), table, to)
    assert [file.name for file in to.parent.iterdir()] == [to.name]
    return to.read_text(encoding="utf-8")


@pytest.fixture
def page(random_table: pa.Table, tmp_path: Path) -> str:
    return report(random_table, tmp_path / "report.html", "language", "functionality", "market", run="a run", split="test")


@pytest.fixture
def hostile_page(table_of: Make, tmp_path: Path) -> str:
    table = table_of({"a": ([0, 1, 0, 1], [0.1, 0.8, 0.9, 0.2])}, presence=["text"] * 4).append_column(
        HOSTILE, pa.array([HOSTILE] * 4)
    )
    table = table.set_column(0, "id", pa.array([f"{i}{HOSTILE}" for i in range(4)]))
    return report(table, tmp_path / "report.html", HOSTILE, run=HOSTILE, split=HOSTILE)


class Elements(HTMLParser):
    """Collects tags, attributes and unclosed elements."""

    VOID = frozenset({"meta", "link", "line", "path", "circle", "rect", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_is_sound_and_fetches_nothing(page: str) -> None:
    elements = Elements(page)
    assert elements.open == []
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in elements.tags:
        assert "src" not in attributes
        assert tag not in {"iframe", "object", "embed", "base", "form"}
        if "href" in attributes:
            target = attributes["href"] or ""
            assert target == "data:," or (target.startswith("#") and target[1:] in ids), target
        for name in ("aria-labelledby",):
            if name in attributes:
                assert attributes[name] in ids
    assert "url(" not in page
    assert "@import" not in page


def test_the_page_says_what_was_found(page: str, random_table: pa.Table) -> None:
    targets = random_table.column("target.tobacco").to_numpy()
    value = average_precision(targets, random_table.column("probability.tobacco").to_numpy())
    text = html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))
    assert f"average precision {value:.3f}" in text
    assert "unlabelled (no item has a known target)" in text
    assert "absent from the predictions: market" in text
    assert "mean of 2 of 3 labels" in text
    for value_of_slice in ("text+image", "negation", "not known"):
        assert f" {value_of_slice} " in text


def test_hostile_values_stay_text(hostile_page: str) -> None:
    tags = [tag for tag, _ in Elements(hostile_page).tags]
    assert tags.count("script") == 1
    assert "img" not in tags
    assert HOSTILE not in hostile_page
    assert html.escape("<script>window.hacked=1</script>") in hostile_page
    assert "{{7*7}}" in hostile_page


def test_an_empty_table_has_a_report(table_of: Make, tmp_path: Path) -> None:
    page = report(table_of({"a": ([], [])}, presence=pa.array([], pa.string())), tmp_path / "report.html", run="r")
    assert "there is nothing to measure" in page


def test_the_area_under_the_drawn_curve_is_the_average_precision() -> None:
    random = np.random.default_rng(1)
    targets = (random.random(150) < 0.3).astype(float)
    probabilities = np.clip(0.3 * targets + 0.7 * random.random(150), 0, 1)
    path = charts(targets, probabilities, 0.5).curve
    area, left = 0.0, x(0)
    for vertical, horizontal in re.findall(r"V([\d.]+)H([\d.]+)", path):
        area += (float(horizontal) - left) * (y(0) - float(vertical))
        left = float(horizontal)
    assert left == pytest.approx(x(1), abs=0.05)
    assert area / ((x(1) - x(0)) * (y(0) - y(1))) == pytest.approx(average_precision(targets, probabilities), abs=5e-3)


def test_charts_stay_within_their_box() -> None:
    random = np.random.default_rng(2)
    targets, probabilities = random.choice([0.0, 0.4, 1.0, np.nan], 50_000), random.random(50_000)
    drawn = charts(targets, probabilities, 0.3)
    assert len(drawn.curve) < 8_000
    assert drawn.operating is not None
    places = [drawn.operating, *((dot.x, dot.y) for dot in drawn.dots), *((bar.x, bar.y) for bar in drawn.bars)]
    places += [(bar.x + bar.width, bar.y + bar.height) for bar in drawn.bars]
    assert all(x(0) <= across <= x(1) and y(1) <= down <= y(0) + 0.02 for across, down in places)


def test_the_surest_mistakes_come_first(table_of: Make) -> None:
    targets, probabilities = np.array([0, 0, 1, 1, np.nan, 0]), np.array([0.7, 0.9, 0.2, 0.1, 0.99, 0.1])
    table = table_of({"a": ([0, 0, 1, 1, None, 0], probabilities)}, presence=["text"] * 6, language=[None, "en"] * 3)
    flagged, missed = mistakes(table, targets, probabilities, 0.5, ["presence", "language"])
    assert [(m.id, m.probability, m.columns) for m in flagged] == [("item-1", 0.9, "text, en"), ("item-0", 0.7, "text")]
    assert [m.id for m in missed] == ["item-3", "item-2"]


def test_weak_groups_stand_out(table_of: Make) -> None:
    targets = [0] * 60
    probabilities = [0.1] * 30 + [0.9] * 10 + [0.1] * 20
    table = table_of({"a": (targets, probabilities)}, market=["x"] * 30 + ["y"] * 25 + ["z"] * 5)
    lines = highlights(evaluate(table, ("a",), {"a": 0.5}, EvaluationSpec(slices=("market",)), {}))
    assert "Where market is y, 60.0% of 25 items are decided rightly, against 83.3% of all." in lines
    assert not any("market is z" in line or "market is x" in line for line in lines)


PROBE = """<!doctype html><iframe id=frame width=%d height=800 style="border:0" srcdoc="%s"></iframe>
<script>
frame.addEventListener("load", () => {
  const page = frame.contentDocument, view = frame.contentWindow, root = page.documentElement;
  page.querySelectorAll("details").forEach((details) => { details.open = true; });
  const table = page.querySelector("table.sortable");
  const before = [...table.tBodies[0].rows].map((row) => row.cells[0].innerText);
  table.tHead.rows[0].cells[0].querySelector("button").click();
  const found = {
    overflow: root.scrollWidth - view.innerWidth, width: view.innerWidth, hacked: view.hacked === 1,
    fetched: view.performance.getEntriesByType("resource").map((entry) => entry.name), scripts: page.scripts.length,
    before, after: [...table.tBodies[0].rows].map((row) => row.cells[0].innerText),
    sorted: table.tHead.rows[0].cells[0].getAttribute("aria-sort"),
  };
  const result = document.createElement("output");
  result.textContent = JSON.stringify(found);
  document.body.append(result);
});
</script>"""


@pytest.mark.parametrize("width", [390, 820, 1300])
@pytest.mark.parametrize("kind", ["page", "hostile_page"])
def test_in_a_browser(kind: str, width: int, chromium: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE % (width, html.escape(request.getfixturevalue(kind))), encoding="utf-8")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=3000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900", "--dump-dom", probe.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    output = re.search(r"<output>(.*?)</output>", ran.stdout, re.DOTALL)
    assert output, ran.stdout[-500:] + ran.stderr[-2000:]
    found = json.loads(html.unescape(output[1]))
    assert [line for line in ran.stderr.splitlines() if "CONSOLE" in line] == []
    assert found["width"] == width
    assert found["overflow"] <= 0
    assert (found["hacked"], found["scripts"], found["fetched"]) == (False, 1, [])
    assert (found["after"], found["sorted"]) == (sorted(found["before"]), "ascending")
