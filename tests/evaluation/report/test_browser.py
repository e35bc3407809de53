"""The evaluation page in a real browser: three widths, keyboard, light and dark, print, and a hostile table."""

import html
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vigil_evaluation.evaluate import evaluate_data
from vigil_evaluation.evaluation_data import EvaluationData
from vigil_evaluation.metrics import decisions_at
from vigil_evaluation.report.evaluation_page import render_evaluation_page
from vigil_evaluation.report.evidence import ItemExample, SegmentEvidence
from vigil_evaluation.report.glossary import TERMS
from vigil_evaluation.report.hardest_errors import hardest_error_ids
from vigil_evaluation.report.suite_page import render_suite_page
from vigil_evaluation.specs import EvaluationSpec
from vigil_evaluation.suites.results import SuiteResults

Browse = Callable[..., Any]
HOSTILE = '<script>window.hacked=1</script><img src=x onerror="window.hacked=1">\'"&{{7*7}}' + "W" * 200


@pytest.fixture(scope="session")
def page(report_case: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    data, results = report_case["data"], report_case["results"]
    evidence = (
        SegmentEvidence("text", "text 1, characters 1 to 6", 0.7, "A note"),
        SegmentEvidence("image", "image 1", 0.2, None),
    )
    examples = {
        id_: ItemExample(("A note of two lines.", "\u05e9\u05dc\u05d5\u05dd \U0001f33b"), dict.fromkeys(data.labels, evidence))
        for id_ in hardest_error_ids(data)[::2]
    }
    to = tmp_path_factory.mktemp("report") / "report.html"
    render_evaluation_page(results, data, to, examples)
    return to.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def hostile_page(table_of: Callable[..., pa.Table], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page on which every name, value, text and label tries to inject markup."""
    label = HOSTILE.replace(".", "")
    rows = 60
    table = table_of(
        {label: ([0, 1] * 30, [0.1, 0.8, 0.9, 0.2] * 15), "b": ([0, 1] * 30, [0.1, 0.9] * 30)}, presence=["text"] * rows
    )
    for column, values in ((HOSTILE, [HOSTILE] * rows), ("identity", [HOSTILE, None] * 30), ("functionality", [HOSTILE] * rows)):
        table = table.append_column(column, pa.array(values))
    table = table.append_column("text", pa.array([HOSTILE] * rows))
    table = table.set_column(0, "id", pa.array([f"{i}{HOSTILE}" for i in range(rows)]))
    spec = EvaluationSpec(slices=(HOSTILE,), identities=("identity",), replicates=50)
    data = EvaluationData.from_table(table, (label, "b"), {label: 0.5, "b": 0.5}, spec)
    results = evaluate_data(data, {"run": HOSTILE, HOSTILE: HOSTILE})
    evidence = {label: (SegmentEvidence("text", HOSTILE, 0.5, HOSTILE),)}
    to = tmp_path_factory.mktemp("hostile") / "report.html"
    render_evaluation_page(results, data, to, {id_: ItemExample((HOSTILE,), evidence) for id_ in hardest_error_ids(data)})
    return to.read_text(encoding="utf-8")


LAYOUT = """
  page.querySelectorAll("details").forEach((details) => { details.open = true; });
  page.getElementById("reveal")?.click();
  const outside = [...page.querySelectorAll("body *")].filter((one) => {
    const table = one.closest(".table");
    if (table && table !== one && view.getComputedStyle(table).overflowX === "auto") return false;
    if (one.closest(".visually-hidden, nav, .skip") || one.closest("thead")?.clientWidth <= 1) return false;
    if (!one.getClientRects().length) return false;
    const box = one.getBoundingClientRect();
    return box.width && (box.right > view.innerWidth + 1 || box.left < -1);
  }).map((one) => `${one.tagName} ${one.className} in ${one.parentElement.className} ${one.closest('section')?.id}`);
  // A table that is wider than its container scrolls within it, by keyboard too.
  const stuck = [...page.querySelectorAll(".table")].filter((one) => one.scrollWidth > one.clientWidth + 1 &&
    (one.tabIndex !== 0 || view.getComputedStyle(one).overflowX !== "auto")).map((one) => one.getAttribute("aria-label"));
  return { overflow: root.scrollWidth - view.innerWidth, width: view.innerWidth, hacked: view.hacked ?? null, outside, stuck,
    fetched: view.performance.getEntriesByType("resource").map((entry) => entry.name), scripts: page.scripts.length,
    images: page.images.length };
"""


@pytest.mark.parametrize("width", [390, 820, 1300])
@pytest.mark.parametrize("kind", ["page", "hostile_page"])
def test_page_fits_its_width_and_executes_no_data(kind: str, width: int, browse: Browse, request: pytest.FixtureRequest) -> None:
    found = browse(request.getfixturevalue(kind), LAYOUT, width)
    assert found["width"] == width
    assert found["outside"] == []
    assert found["overflow"] <= 0
    assert found["stuck"] == []
    assert (found["hacked"], found["scripts"], found["images"], found["fetched"]) == (None, 1, 0, [])


def test_pages_without_labels_and_of_suites_fit_a_phone(browse: Browse, report_case: dict[str, Any], tmp_path: Path) -> None:
    data, results = report_case["data"], report_case["results"]
    table = data.table.select([name for name in data.table.column_names if not name.startswith("target.")])
    bare = EvaluationData.from_table(table, data.labels, data.thresholds, data.spec)
    found = evaluate_data(bare, {"run": "winter"}, calibrated=report_case["calibrated"], policy=report_case["policy"])
    render_evaluation_page(found, bare, tmp_path / "unlabelled.html")
    suite = SuiteResults(
        suite="winter", facts={}, descriptions={}, thresholds=dict(data.thresholds), skipped=["x"], findings=results.functionality
    )
    render_suite_page(suite, tmp_path / "suite.html")
    for name in ("unlabelled", "suite"):
        shown = browse((tmp_path / f"{name}.html").read_text(encoding="utf-8"), LAYOUT, 390)
        assert (shown["outside"], shown["stuck"], shown["fetched"]) == ([], [], []), name
        assert shown["overflow"] <= 0, name


def test_table_headings_sort_their_column(browse: Browse, page: str) -> None:
    script = """
      const table = page.querySelector("#labels table");
      const column = (i) => [...table.tBodies[0].rows].map((row) => row.cells[i].dataset.value);
      const press = (i) => { table.tHead.rows[0].cells[i].querySelector("button").click();
        return [column(i), table.tHead.rows[0].cells[i].getAttribute("aria-sort")]; };
      return [press(0), press(3), press(3), [...table.tHead.rows[0].cells].filter((one) => one.ariaSort).length];
    """
    names, rising, falling, marked = browse(page, script)
    assert names == [sorted(names[0]), "ascending"]
    numbers = [float(value) for value in rising[0] if value]
    assert (numbers, rising[0][-1], rising[1]) == (sorted(numbers), "", "ascending")
    assert ([float(value) for value in falling[0] if value], falling[1], marked) == (sorted(numbers)[::-1], "descending", 1)


def test_threshold_explorer_shows_exact_counts(browse: Browse, page: str, report_case: dict[str, Any]) -> None:
    script = """
      const box = page.querySelector("[data-explorer]");
      const [number, slider] = [box.querySelector("[type=number]"), box.querySelector("[type=range]")];
      const read = () => ({ threshold: Number(number.value), text: box.querySelector("output").innerText, place: slider.value,
        valueText: slider.getAttribute("aria-valuetext"),
        marks: [...box.querySelectorAll("svg .candidate")].map((one) => one.getAttribute("visibility")) });
      const type = (value) => { number.value = value; number.dispatchEvent(new view.Event("change")); return read(); };
      const slide = (value) => { slider.value = value; slider.dispatchEvent(new view.Event("input")); return read(); };
      const first = read();
      return { first, typed: type("0.75"), slid: slide("3"), last: slide(slider.max), wrong: type(""),
        back: (slide("9"), box.querySelector("[data-reset]").click(), read()) };
    """
    found = browse(page, script)
    label = "tobacco"
    data = report_case["data"]
    column = data.labels.index(label)
    targets_N, probabilities_N = data.targets_NL[:, column], data.probabilities_NL[:, column]
    for name in ("first", "typed", "slid", "last"):
        shown = found[name]
        decided = decisions_at(targets_N, probabilities_N, shown["threshold"])
        flagged = decided.true_positives + decided.false_positives
        assert f"{decided.true_positives:,} of {flagged:,}" in shown["text"], name
        assert f"{decided.false_positives:,} of {decided.false_positives + decided.true_negatives:,}" in shown["text"], name
        assert f"{int((probabilities_N >= shown['threshold']).sum()):,} of {len(probabilities_N):,}" in shown["text"], name
        assert str(shown["threshold"]) in shown["valueText"]
        if flagged:
            assert f"{decided.true_positives / flagged:.1%}" in shown["text"], name
    assert found["typed"]["threshold"] == 0.75
    assert found["first"]["marks"] == ["hidden"] * 3
    assert found["typed"]["marks"] == ["visible"] * 3
    assert found["wrong"] == found["back"] == found["first"]


def test_threshold_explorer_is_a_table_without_scripts(page: str) -> None:
    assert re.search(r'<details class="points" open>', page)
    assert re.search(r'<div class="controls" hidden>', page)
    for control in re.findall(r"<(?:select|input)[^>]*>", page):
        before = page[: page.index(control)]
        assert before.rfind(" hidden>") > max(before.rfind("</table>"), before.rfind("</select></label>\n</div>")), control
    rows = re.search(r'<table class="points slim">.*?</table>', page, re.DOTALL)[0].count("<tr")
    assert 8 <= rows <= 13


def test_slice_plot_switches_metric_and_label(browse: Browse, page: str, report_case: dict[str, Any]) -> None:
    script = """
      const box = page.querySelectorAll("[data-slices]")[1];
      const pick = (name, value) => { const one = box.querySelector(`[data-pick=${name}]`); one.value = value;
        one.dispatchEvent(new view.Event("change")); };
      const read = () => [...box.querySelectorAll("tbody tr")].map((row) => ({ group: row.cells[0].innerText.trim(),
        support: row.cells[2].innerText.trim(), number: row.cells[3].querySelector(".value").innerText.trim(),
        dots: row.querySelectorAll("circle").length, at: row.querySelector("circle")?.getAttribute("cx") }));
      const first = read();
      pick("metric", 1); pick("label", 1);
      const heading = box.querySelector("thead").rows[0].cells[3].innerText.trim();
      const second = read();
      pick("order", "low");
      return { first, second, heading, low: read() };
    """
    found = browse(page, script)
    groups = next(b for b in report_case["results"].by if b.column == "language").groups
    for group, first, second in zip(groups, found["first"], found["second"], strict=True):
        numbers = group.labels["tobacco"]
        assert first["number"] == f"{group.all_right:.1%}"
        assert second["number"] == f"{numbers.recall:.1%}"
        assert second["support"] == f"{numbers.known:,} known, {numbers.positive:,} positive"
        assert second["dots"] == 1
    assert found["heading"].startswith("Recall")
    low = [float(row["number"].rstrip("%")) for row in found["low"]]
    places = [float(row["at"].rstrip("%")) for row in found["low"]]
    assert low == sorted(low)
    assert places == sorted(places)


def test_fairness_heatmap_shows_one_label_at_a_time(browse: Browse, page: str) -> None:
    script = """
      const select = page.querySelector("select[data-chooses=fairness]");
      const shown = () => [...page.querySelectorAll("[data-of=fairness]")].map((one) => !one.hidden);
      const before = shown(); select.value = "2"; select.dispatchEvent(new view.Event("change"));
      return [before, shown()];
    """
    assert browse(page, script) == [[True, False, False, False], [False, False, True, False]]


def test_texts_are_blurred_until_their_button_is_clicked(browse: Browse, page: str) -> None:
    script = """
      page.querySelectorAll("details").forEach((details) => { details.open = true; });
      const sensitive = [...page.querySelectorAll(".sensitive")], all = page.getElementById("reveal");
      const state = (one) => { const text = one.querySelector(".text"), button = one.querySelector("button");
        return [button.getAttribute("aria-pressed"), text.getAttribute("aria-hidden"),
          view.getComputedStyle(text.firstElementChild).filter !== "none", button.tagName, button.hidden]; };
      const kinds = () => [...new Set(sensitive.map((one) => JSON.stringify(state(one))))].map(JSON.parse);
      const start = kinds();
      sensitive[0].querySelector("button").click();
      const one = [state(sensitive[0]), state(sensitive[1]), all.getAttribute("aria-pressed")];
      all.click(); const every = [kinds(), all.getAttribute("aria-pressed")];
      sensitive[1].querySelector("button").click(); const less = [state(sensitive[1]), all.getAttribute("aria-pressed")];
      all.click(); all.click();
      return { count: sensitive.length, start, one, every, less, end: kinds(),
        names: sensitive.slice(0, 2).map((s) => s.querySelector("button").computedName),
        bare: [...page.querySelectorAll("#errors .text")].filter((text) => !text.closest(".sensitive")).length };
    """
    found = browse(page, script)
    hidden, shown = ["false", "true", True, "BUTTON", False], ["true", None, False, "BUTTON", False]
    assert found["count"] > 10
    assert found["start"] == [hidden]
    assert found["one"] == [shown, hidden, "false"]
    assert found["every"] == [[shown], "true"]
    assert found["less"] == [hidden, "false"]
    assert found["end"] == [hidden]
    assert found["bare"] == 0
    assert all(re.fullmatch(r"Show the text of item-\d+", name) for name in found["names"])


def test_terms_show_their_meaning_on_focus_and_hover_and_escape_closes_it(browse: Browse, page: str) -> None:
    script = """
      const tip = page.getElementById("tip");
      const terms = [...page.querySelectorAll("[data-tip]")].filter((one) => one.checkVisibility());
      const outside = [];
      for (const term of terms) {
        term.scrollIntoView({ block: "center" });
        term.focus({ preventScroll: true });
        const box = tip.getBoundingClientRect();
        const inside = box.left >= 0 && box.right <= view.innerWidth && box.top >= 0 && box.bottom <= view.innerHeight;
        if (tip.hidden || term.title || !inside) outside.push(term.innerText);
      }
      const named = (name) => terms.find((one) => one.innerText === name);
      const read = () => tip.hidden ? null : tip.innerText;
      const partial = named("Partial AUROC");
      partial.focus();
      const focused = [read(), partial.getAttribute("aria-describedby"), partial.computedName];
      view.dispatchEvent(new view.KeyboardEvent("keydown", { key: "Escape" }));
      const closed = [read(), partial.getAttribute("aria-describedby")];
      partial.blur();
      named("BPSN AUC").dispatchEvent(new view.PointerEvent("pointerenter"));
      const hovered = read();
      named("BPSN AUC").dispatchEvent(new view.PointerEvent("pointerleave"));
      return { count: terms.length, outside, focused, closed, hovered, left: read() };
    """
    for width in (1300, 820):
        found = browse(page, script, width)
        assert found["count"] > 40
        assert found["outside"] == []
        assert found["focused"] == [TERMS["Partial AUROC"], "tip", "Partial AUROC"]
        assert found["closed"] == [None, None]
        assert found["hovered"] == TERMS["BPSN AUC"]
        assert found["left"] is None


CONTROLS = """
  page.querySelectorAll("details").forEach((details) => { details.open = true; });
  const kinds = "a[href], button, input, select, summary, [tabindex]";
  const all = [...page.querySelectorAll(kinds)].filter((one) => one.checkVisibility());
  const bare = all.filter((one) => !one.computedName.trim() && one.tagName !== "MAIN");
  const nameless = bare.map((one) => one.outerHTML.slice(0, 160));
  const ahead = all.filter((one) => one.tabIndex > 0).length;
  const regions = [...page.querySelectorAll("svg[role=img]")].filter((one) => !one.computedName.trim()).length;
  const twice = all.filter((one) => one.matches("input, select")).map((one) => one.computedName);
  const unseen = [];
  for (const one of all.filter((one) => one.matches("button, input, select, a, summary")).slice(0, 80)) {
    one.focus({ preventScroll: true });
    if (page.activeElement !== one) unseen.push("not focused: " + one.outerHTML.slice(0, 100));
    else if (view.getComputedStyle(one).outlineStyle === "none") unseen.push("no outline: " + one.outerHTML.slice(0, 100));
  }
  return { count: all.length, nameless, ahead, regions, twice, unseen };
"""


def test_controls_have_a_name_and_show_focus(browse: Browse, page: str) -> None:
    found = browse(page, CONTROLS)
    assert found["count"] > 100
    assert found["nameless"] == []
    assert found["unseen"] == []
    assert (found["ahead"], found["regions"]) == (0, 0)
    assert len(found["twice"]) == len(set(found["twice"]))


CONTRAST = """
  page.querySelectorAll("details").forEach((details) => { details.open = true; });
  page.getElementById("reveal").click();
  page.querySelectorAll("[data-of]").forEach((one) => { one.hidden = false; });
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => [r, g, b].map(linear)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => { for (let at = one; at; at = at.parentElement) {
    const [r, g, b, a = 1] = rgb(view.getComputedStyle(at).backgroundColor);
    if (a === 1) return [r, g, b];
    if (a > 0) throw new Error("mixed " + at.outerHTML.slice(0, 80));
  } return [255, 255, 255]; };
  const low = []; let seen = 0;
  for (const one of page.querySelectorAll("body *")) {
    if (one.closest("script, style, .visually-hidden, option") || !one.checkVisibility()) continue;
    if (![...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    const style = view.getComputedStyle(one);
    const [text, ground] = [luminance(rgb(one.closest("svg") ? style.fill : style.color)), luminance(behind(one))];
    const ratio = (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
    seen += 1;
    if (ratio < 4.5) low.push(`${ratio.toFixed(2)} ${one.outerHTML.slice(0, 140)}`);
  }
  return { seen, low: low.slice(0, 20), ground: view.getComputedStyle(page.body).backgroundColor };
"""


@pytest.mark.parametrize(("dark", "ground"), [(False, "rgb(246, 247, 249)"), (True, "rgb(18, 22, 28)")])
def test_text_contrast_meets_wcag_aa(dark: bool, ground: str, browse: Browse, page: str) -> None:
    """WCAG 2.2, 1.4.3, level AA: 4.5 to 1."""
    found = browse(page, CONTRAST, dark=dark)
    assert found["ground"] == ground
    assert found["seen"] > 1000
    assert found["low"] == []


def test_print_opens_every_section(page: str, chromium: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--print-to-pdf={tmp_path / 'report.pdf'}", (tmp_path / "report.html").as_uri()]
    subprocess.run(command, capture_output=True, check=True, timeout=120)
    pdf = (tmp_path / "report.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 5


def test_link_into_a_closed_section_opens_it(browse: Browse, page: str) -> None:
    script = """
      const last = page.getElementById("label-4"); const before = last.open;
      view.location.hash = "#label-4"; await new Promise((done) => setTimeout(done, 200));
      return [before, last.open];
    """
    assert browse(page, script) == [False, True]


def test_render_evaluation_page_is_deterministic(page: str, report_case: dict[str, Any], tmp_path: Path) -> None:
    for name in ("one", "two"):
        render_evaluation_page(report_case["results"], report_case["data"], tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert json.loads(html.unescape(re.search(r'data-explorer="(.*?)"', page)[1]))["items"] == 1500
