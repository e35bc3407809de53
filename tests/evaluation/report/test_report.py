"""The report: one sound file that fetches nothing, and whose numbers, pictures and sentences are those that were found."""

import html
import json
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest

from vigil_evaluation.evaluate import evaluate
from vigil_evaluation.metrics import average_precision, decisions_at, operating_points
from vigil_evaluation.report.axes import DIVERGING, SHADES, axis, diverging, shade
from vigil_evaluation.report.curves import RATES, charts, rate_x, x, y
from vigil_evaluation.report.evaluation_page import render
from vigil_evaluation.report.evidence import EvidenceShown, Example
from vigil_evaluation.report.fairness_heatmap import gap_rows, gaps
from vigil_evaluation.report.hardest_errors import LONGEST, mistakes
from vigil_evaluation.report.slice_plot import METRICS, slice_plot
from vigil_evaluation.report.summary import hardest, highlights, remarks, verdict
from vigil_evaluation.report.threshold_explorer import explorer
from vigil_evaluation.specs import EvaluationSpec

Make = Callable[..., pa.Table]
LABELS = ("tobacco", "scams", "unlabelled")
THRESHOLDS = {"tobacco": 0.5, "scams": 0.61, "unlabelled": 0.5}
HOSTILE = '<script>window.hacked=1</script><img src=x onerror="window.hacked=1">\'"&{{7*7}}' + "W" * 200


def report(table: pa.Table, to: Path, *slices: str, **facts: str) -> str:
    spec = EvaluationSpec(slices=slices, replicates=100)
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

    VOID = frozenset({"meta", "link", "line", "path", "circle", "rect", "br", "input"})

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


@pytest.fixture
def full_page(report_case: dict[str, Any], tmp_path: Path) -> str:
    render(report_case["findings"], report_case["table"], tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["page", "full_page", "hostile_page"])
def test_the_page_is_sound_and_fetches_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(kind)
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
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
    assert "url(" not in page
    assert "@import" not in page


def test_the_page_says_what_was_found(page: str, random_table: pa.Table) -> None:
    targets = random_table.column("target.tobacco").to_numpy()
    value = average_precision(targets, random_table.column("probability.tobacco").to_numpy())
    text = html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))
    assert f"Average precision {value:.3f}." in text
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


def label_findings(targets: np.ndarray, probabilities: np.ndarray, threshold: float, table_of: Make) -> Any:
    table = table_of({"a": ([None if np.isnan(t) else t for t in targets.tolist()], probabilities)})
    return evaluate(table, ("a",), {"a": threshold}, EvaluationSpec(replicates=50), {}).overall.labels["a"]


def drawn(targets: np.ndarray, probabilities: np.ndarray, threshold: float, table_of: Make) -> Any:
    targets, probabilities = targets.astype(np.float32).astype(float), probabilities.astype(np.float32).astype(float)
    numbers = label_findings(targets, probabilities, threshold, table_of)
    return charts(targets, probabilities, operating_points(targets, probabilities), numbers)


def test_the_area_under_the_drawn_curve_is_the_average_precision(table_of: Make) -> None:
    random = np.random.default_rng(1)
    targets = (random.random(150) < 0.3).astype(float)
    probabilities = np.clip(0.3 * targets + 0.7 * random.random(150), 0, 1)
    path = drawn(targets, probabilities, 0.5, table_of).curve
    area, left = 0.0, x(0)
    for vertical, horizontal in re.findall(r"V([\d.]+)H([\d.]+)", path):
        area += (float(horizontal) - left) * (y(0) - float(vertical))
        left = float(horizontal)
    assert left == pytest.approx(x(1), abs=0.05)
    assert area / ((x(1) - x(0)) * (y(0) - y(1))) == pytest.approx(average_precision(targets, probabilities), abs=5e-3)


def test_the_drawn_roc_curve_is_recall_over_the_logarithm_of_the_rate(table_of: Make) -> None:
    random = np.random.default_rng(2)
    targets = (random.random(3000) < 0.3).astype(float)
    probabilities = np.clip(0.4 * targets + 0.6 * random.random(3000), 0, 1)
    path = drawn(targets, probabilities, 0.5, table_of).roc
    steps = [(float(across), float(up)) for across, up in re.findall(r"H([\d.]+)V([\d.]+)", path)]
    assert steps == sorted(steps, key=lambda step: (step[0], -step[1]))
    assert steps[-1] == (pytest.approx(x(1)), pytest.approx(y(1)))
    negatives, positives = probabilities[targets < 0.5], probabilities[targets >= 0.5]
    for rate in (0.003, 0.01, 0.05, 0.2, 0.7):
        height = [up for across, up in steps if across <= rate_x(rate) + 0.01][-1]
        threshold = np.sort(negatives)[::-1][int(rate * len(negatives))]
        recall = float(np.mean(positives > threshold))
        assert (y(0) - height) / (y(0) - y(1)) == pytest.approx(recall, abs=0.03)


def test_the_rate_axis_has_its_decades_at_even_distances() -> None:
    assert [rate_x(rate) for rate in (1e-4, 1e-3, 1e-2, 1e-1, 1)] == pytest.approx([x(at) for at, _ in RATES], abs=0.01)
    assert rate_x(0) == rate_x(1e-9) == x(0)


def test_charts_stay_within_their_box(table_of: Make) -> None:
    random = np.random.default_rng(2)
    targets, probabilities = random.choice([0.0, 0.4, 1.0, np.nan], 50_000), random.random(50_000)
    shown = drawn(targets, probabilities, 0.3, table_of)
    assert len(shown.curve) < 8_000
    assert len(shown.roc) < 8_000
    marks = [shown.curve_mark, shown.roc_mark]
    places = [*((m.x, m.y) for m in marks), *((dot.x, dot.y) for dot in shown.dots), *((bar.x, bar.y) for bar in shown.bars)]
    places += [(bar.x + bar.width, bar.y + bar.height) for bar in shown.bars]
    places += [(dot.x, end) for dot in shown.dots for end in (dot.low_y, dot.high_y)]
    for path in (shown.curve, shown.roc, *(m.cross for m in marks)):
        places += [(float(across), y(0)) for across in re.findall(r"[HM]([\d.]+)", path)]
        places += [(x(0), float(up)) for up in re.findall(r"V([\d.]+)", path)]
    assert all(x(0) <= across <= x(1) and y(1) <= down <= y(0) + 0.02 for across, down in places)


def test_the_intervals_of_the_reliability_chart_are_wilsons(table_of: Make) -> None:
    random = np.random.default_rng(6)
    probabilities = random.random(400)
    targets = (random.random(400) < probabilities).astype(float)
    for dot in drawn(targets, probabilities, 0.5, table_of).dots:
        items, share = int(dot.text.split()[0]), (y(0) - dot.y) / (y(0) - y(1))
        expected = binomtest(round(share * items), items).proportion_ci(0.95, "wilson")
        assert (dot.low_y, dot.high_y) == pytest.approx((y(expected.low), y(expected.high)), abs=0.05)


@settings(deadline=None)
@given(
    targets=arrays(np.float64, 60, elements=st.sampled_from([0.0, 1.0, np.nan])),
    probabilities=arrays(np.float64, 60, elements=st.floats(0, 1)),
    threshold=st.floats(0, 1),
)
def test_all_counts_of_the_explorer_are_exact(targets: np.ndarray, probabilities: np.ndarray, threshold: float) -> None:
    found = explorer(operating_points(targets, probabilities), probabilities, threshold)
    assert found.tried[found.current].threshold == threshold
    thresholds = [tried.threshold for tried in found.tried]
    assert thresholds == sorted(set(thresholds))
    for tried in found.tried:
        decided = decisions_at(targets, probabilities, tried.threshold)
        assert (tried.true_positives, tried.false_positives) == (decided.true_positives, decided.false_positives)
        assert tried.flagged == int((probabilities >= tried.threshold).sum())
    assert found.current in [found.tried.index(row) for row in found.rows]
    assert json.loads(found.to_json())["current"] == found.current


def test_the_explorer_reaches_rare_labels_and_stays_small() -> None:
    random = np.random.default_rng(3)
    targets = (random.random(200_000) < 0.001).astype(float)
    probabilities = random.beta(0.2, 500, 200_000) + 0.004 * targets * random.random(200_000)
    found = explorer(operating_points(targets, probabilities), probabilities, 0.5)
    assert len(found.to_json()) < 10_000
    recall = {round(tried.true_positives / found.positives, 1) for tried in found.tried}
    assert recall >= {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0}
    assert 5 <= len(found.rows) <= 12


@given(st.lists(st.floats(0, 1), max_size=8))
def test_an_axis_holds_what_is_drawn_on_it(values: list[float]) -> None:
    made = axis([*values, None])
    assert 0 <= made.low < made.high <= 1 + 1e-9
    assert 2 <= len(made.ticks) <= 5
    assert all(made.low - 1e-6 <= value <= made.high + 1e-6 for value in values)
    assert all(0 <= float(made.place(value)) <= 100 for value in values)


def test_axes_are_round() -> None:
    assert axis([0.713, 0.94]).ticks == (0.7, 0.8, 0.9, 1.0)
    assert axis([0.002, 0.0071]).ticks == (0.002, 0.004, 0.006, 0.008)
    assert axis([]).ticks == (0, 0.5, 1)


def test_steps_of_colour_are_those_that_are_stated() -> None:
    assert [diverging(-bound) for bound in DIVERGING] == ["w1", "w2", "w3", "w4"]
    assert [diverging(bound) for bound in DIVERGING] == ["b1", "b2", "b3", "b4"]
    assert [diverging(v) for v in (None, 0.0, 0.0099, -0.0099)] == [""] * 4
    assert [shade(bound) for bound in SHADES] == ["w1", "w2", "w3", "w4"]
    assert [shade(v) for v in (None, 0.0, 0.049)] == [""] * 3


def test_the_surest_mistakes_come_first(table_of: Make) -> None:
    targets, probabilities = np.array([0, 0, 1, 1, np.nan, 0]), np.array([0.7, 0.9, 0.2, 0.1, 0.99, 0.1])
    table = table_of({"a": ([0, 0, 1, 1, None, 0], probabilities)}, presence=["text"] * 6, language=[None, "en"] * 3)
    flagged, missed = (side.shown(table, ["presence", "language"], {}, "a") for side in mistakes(targets, probabilities, 0.5))
    assert [(m.id, m.probability, m.columns) for m in flagged["entries"]] == [
        ("item-1", 0.9, {"presence": "text", "language": "en"}),
        ("item-0", 0.7, {"presence": "text"}),
    ]
    assert [m.id for m in missed["entries"]] == ["item-3", "item-2"]
    assert (flagged["count"], missed["count"]) == (2, 2)


def test_texts_come_from_examples_or_else_from_the_table_and_are_cut(table_of: Make) -> None:
    table = table_of({"a": ([0, 0, 0], [0.9, 0.8, 0.7])}, text=[["one", None, "two"], ["x" * (LONGEST + 7)], None])
    evidence = (EvidenceShown("text", "text 1, characters 1 to 2", 0.7, "ab"),)
    examples = {"item-2": Example(("from an example",), {"a": evidence, "b": ()})}
    flagged, _ = mistakes(np.zeros(3), np.array([0.9, 0.8, 0.7]), 0.5)
    first, second, third = flagged.shown(table, [], examples, "a")["entries"]
    assert [(p.text, p.left_out) for p in first.passages] == [("one", 0), ("two", 0)]
    assert [(len(p.text), p.left_out) for p in second.passages] == [(LONGEST, 7)]
    assert ([p.text for p in third.passages], third.evidence) == (["from an example"], evidence)


def test_the_hardest_are_all_items_that_are_shown(report_case: dict[str, Any], tmp_path: Path) -> None:
    table, findings = report_case["table"], report_case["findings"]
    ids = hardest(findings, table)
    assert len(ids) == len(set(ids)) > 20
    render(findings, table, tmp_path / "report.html")
    shown = re.findall(r'<bdi class="id">(.*?)</bdi>', (tmp_path / "report.html").read_text())
    assert set(shown) == set(ids)


def test_weak_slices_stand_out(table_of: Make) -> None:
    right = [True] * 30 + [False] * 12 + [True] * 18 + [True] * 5
    probabilities = [0.1 if r else 0.9 for r in right]
    table = table_of({"a": ([0] * 65, probabilities)}, market=["x"] * 30 + ["y"] * 30 + ["z"] * 5)
    lines = highlights(evaluate(table, ("a",), {"a": 0.5}, EvaluationSpec(slices=("market",), replicates=0), {}))
    assert any(
        line.startswith("Where market is y, 60.0% of 30 items are decided rightly, against 100.0% of all others")
        for line in lines
    )
    assert not any("market is z" in line or "market is x" in line for line in lines)


def test_the_summary_names_what_was_planted(report_case: dict[str, Any]) -> None:
    found = remarks(report_case["findings"])
    by_topic: dict[str, list[str]] = {}
    for remark in found:
        by_topic.setdefault(remark.topic, []).append(remark.text)
    assert "presence is text+image and language is de" in by_topic["Weak slice"][0]
    assert "speak of bakers, more negatives are flagged for tobacco" in by_topic["Unequal treatment"][0]
    assert "unlabelled (no item has a known target)" in by_topic["No ranking"][0]
    assert by_topic["Absent columns"] == ["Columns asked for but absent from the predictions: absent."]
    broken = [s for s in report_case["findings"].policy.promises if s.kept is False]
    assert len(by_topic.get("Promise broken", [])) == len(broken)
    assert all(
        re.search(r"\d", remark.text) for remark in found if remark.topic not in {"Absent columns", "No ranking", "Never flagged"}
    )


def test_the_verdict_says_what_the_findings_say(report_case: dict[str, Any]) -> None:
    findings = report_case["findings"]
    sentences = " ".join(verdict(findings))
    assert f"right about every known label for {findings.overall.all_right:.1%} (" in sentences
    assert f"catches {findings.overall.macro['recall'].value:.1%} (" in sentences
    assert "on average over 3 of 4 labels" in sentences
    assert "Under the policy forum, version 1" in sentences


def test_gaps_are_counted_with_what_chance_would_make(report_case: dict[str, Any]) -> None:
    findings = report_case["findings"]
    every = gaps(findings)
    apart = [gap for gap in every if not gap.interval.low <= 0 <= gap.interval.high]
    assert len(apart) == sum(gap.least > 0 for gap in every)
    text = next(remark.text for remark in remarks(findings) if remark.topic == "Gaps in all")
    assert f"Of {len(every)} gaps" in text
    assert f", {len(apart)} have an interval without 0" in text
    assert f"chance alone would make about {0.05 * len(every):.0f}." in text


def test_the_fairness_map_is_coloured_by_who_fares_worse(report_case: dict[str, Any]) -> None:
    findings = report_case["findings"]
    row = next(row for row in gap_rows(findings, "tobacco") if row.value == "bakers")
    gap, auc = row.cells["false_positive_gap"], row.cells["bpsn_auc"]
    assert (gap.value > 0.2, diverging(gap.difference), gap.sure) == (True, "w4", True)
    assert auc.difference == pytest.approx(auc.value - findings.overall.labels["tobacco"].auroc)
    assert auc.sure == (auc.interval.high < findings.overall.labels["tobacco"].auroc)


def test_slices_carry_every_number_that_can_be_chosen(report_case: dict[str, Any]) -> None:
    findings = report_case["findings"]
    breakdown = next(b for b in findings.by if b.column == "language")
    shown = slice_plot(breakdown, findings.overall)
    data = json.loads(shown.data)
    for metric, held in zip(METRICS, data["metrics"], strict=True):
        for label, cells in zip([None, *findings.overall.labels], held["cells"], strict=True):
            for group, (value, *rest) in zip(breakdown.groups, cells, strict=True):
                if label is not None:
                    expected, interval = getattr(group.labels[label], metric), group.labels[label].intervals.get(metric)
                elif metric == "accuracy":
                    expected, interval = group.all_right, group.all_right_interval
                else:
                    expected, interval = group.macro[metric].value, group.macro[metric].interval
                assert value == (None if expected is None else pytest.approx(expected, abs=1e-5))
                if interval is not None:
                    assert rest[:2] == pytest.approx(list(interval), abs=1e-5)
                    assert held["ticks"][0] - 1e-5 <= rest[0] <= rest[1] <= held["ticks"][-1] + 1e-5


def test_a_large_report_stays_small(table_of: Make, tmp_path: Path) -> None:
    """Twenty labels by two columns of 30 groups, from 20,000 items of which none but the shown is in the page."""
    random, rows = np.random.default_rng(4), 20_000
    labels = {}
    for i in range(20):
        targets = (random.random(rows) < 0.1).astype(float)
        labels[f"label_{i}"] = (targets, np.clip(0.3 * targets + 0.7 * random.random(rows), 0, 1))
    columns = {name: [f"{name} {n}" for n in random.integers(0, 30, rows)] for name in ("market", "language")}
    table = table_of(labels, text=["A neutral text. " * 20] * rows, presence=["text"] * rows, **columns)
    started = time.perf_counter()
    findings = evaluate(table, list(labels), dict.fromkeys(labels, 0.5), EvaluationSpec(slices=tuple(columns), replicates=20), {})
    measured = time.perf_counter()
    render(findings, table, tmp_path / "report.html")
    size, took = (tmp_path / "report.html").stat().st_size, time.perf_counter() - measured
    print(f"{size / 1e6:.2f} MB, rendered in {took:.1f} s after {measured - started:.1f} s of evaluation")
    assert size < 3_000_000
    assert took < 20
