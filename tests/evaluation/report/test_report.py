"""The evaluation page: one valid self-contained file whose numbers, plots and sentences match the results."""

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

from vigil_data.decode.text_spans import MarkedSpan
from vigil_evaluation.calibration.fit import fit_calibration
from vigil_evaluation.evaluate import evaluate_data, evaluate_table
from vigil_evaluation.evaluation_data import EvaluationData
from vigil_evaluation.metrics import average_precision, decisions_at, operating_points
from vigil_evaluation.report.axes import DIVERGING_BOUNDS, ERROR_RATE_BOUNDS, diverging_class, error_rate_class, fit_axis
from vigil_evaluation.report.curves import FPR_TICKS, fpr_x, label_curves, x, y
from vigil_evaluation.report.evaluation_page import render_evaluation_page
from vigil_evaluation.report.evidence import ItemExample, SegmentEvidence
from vigil_evaluation.report.fairness_heatmap import heatmap_rows, subgroup_gaps
from vigil_evaluation.report.glossary import TERMS
from vigil_evaluation.report.hardest_errors import MAX_CHARACTERS, hardest_error_ids, hardest_errors
from vigil_evaluation.report.rendering import TEMPLATES, format_percent
from vigil_evaluation.report.slice_plot import SLICE_METRICS, slice_plots
from vigil_evaluation.report.summary import biased_labels, remarks, summary_sentences
from vigil_evaluation.report.threshold_explorer import threshold_explorer
from vigil_evaluation.specs import CalibrationSpec, EvaluationSpec

Make = Callable[..., pa.Table]
LABELS = ("tobacco", "scams", "unlabelled")
THRESHOLDS = {"tobacco": 0.5, "scams": 0.61, "unlabelled": 0.5}
HOSTILE = '<script>window.hacked=1</script><img src=x onerror="window.hacked=1">\'"&{{7*7}}' + "W" * 200


def report(table: pa.Table, to: Path, *slices: str, **facts: str) -> str:
    spec = EvaluationSpec(slices=slices, replicates=100)
    labels = [name.removeprefix("target.") for name in table.column_names if name.startswith("target.")]
    data = EvaluationData.from_table(table, labels, {label: THRESHOLDS.get(label, 0.5) for label in labels}, spec)
    render_evaluation_page(evaluate_data(data, facts), data, to)
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
    render_evaluation_page(report_case["results"], report_case["data"], tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["page", "full_page", "hostile_page"])
def test_page_is_valid_html_and_fetches_nothing(kind: str, request: pytest.FixtureRequest) -> None:
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


def test_page_shows_the_results(page: str, random_table: pa.Table) -> None:
    targets = random_table.column("target.tobacco").to_numpy()
    value = average_precision(targets, random_table.column("probability.tobacco").to_numpy())
    text = html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))
    assert f"Average precision {value:.3f}." in text
    assert "unlabelled (no item has a known target)" in text
    assert "absent from the predictions: market" in text
    assert "mean of 2 of 3 labels" in text
    for value_of_slice in ("text+image", "negation", "not known"):
        assert f" {value_of_slice} " in text


def test_page_escapes_hostile_values(hostile_page: str) -> None:
    tags = [tag for tag, _ in Elements(hostile_page).tags]
    assert tags.count("script") == 1
    assert "img" not in tags
    assert HOSTILE not in hostile_page
    assert html.escape("<script>window.hacked=1</script>") in hostile_page
    assert "{{7*7}}" in hostile_page


def test_page_of_an_empty_table(table_of: Make, tmp_path: Path) -> None:
    page = report(table_of({"a": ([], [])}, presence=pa.array([], pa.string())), tmp_path / "report.html", run="r")
    assert "0 items were scored for 1 label. No item has a known target: nothing is labelled" in page
    page = report(table_of({"a": ([None], [0.5])}, presence=["text"]), tmp_path / "report.html", run="r")
    assert "1 item was scored for 1 label." in page


def label_findings(targets: np.ndarray, probabilities: np.ndarray, threshold: float, table_of: Make) -> Any:
    table = table_of({"a": ([None if np.isnan(t) else t for t in targets.tolist()], probabilities)})
    return evaluate_table(table, ("a",), {"a": threshold}, EvaluationSpec(replicates=50), {}).overall.labels["a"]


def drawn(targets: np.ndarray, probabilities: np.ndarray, threshold: float, table_of: Make) -> Any:
    targets, probabilities = targets.astype(np.float32).astype(float), probabilities.astype(np.float32).astype(float)
    numbers = label_findings(targets, probabilities, threshold, table_of)
    return label_curves(targets, probabilities, operating_points(targets, probabilities), numbers)


def test_precision_recall_curve_has_the_area_of_average_precision(table_of: Make) -> None:
    random = np.random.default_rng(1)
    targets = (random.random(150) < 0.3).astype(float)
    probabilities = np.clip(0.3 * targets + 0.7 * random.random(150), 0, 1)
    path = drawn(targets, probabilities, 0.5, table_of).precision_recall
    area, left = 0.0, x(0)
    for vertical, horizontal in re.findall(r"V([\d.]+)H([\d.]+)", path):
        area += (float(horizontal) - left) * (y(0) - float(vertical))
        left = float(horizontal)
    assert left == pytest.approx(x(1), abs=0.05)
    assert area / ((x(1) - x(0)) * (y(0) - y(1))) == pytest.approx(average_precision(targets, probabilities), abs=5e-3)


def test_roc_curve_is_recall_over_the_logarithm_of_the_false_positive_rate(table_of: Make) -> None:
    random = np.random.default_rng(2)
    targets = (random.random(3000) < 0.3).astype(float)
    probabilities = np.clip(0.4 * targets + 0.6 * random.random(3000), 0, 1)
    path = drawn(targets, probabilities, 0.5, table_of).roc
    steps = [(float(across), float(up)) for across, up in re.findall(r"H([\d.]+)V([\d.]+)", path)]
    assert steps == sorted(steps, key=lambda step: (step[0], -step[1]))
    assert steps[-1] == (pytest.approx(x(1)), pytest.approx(y(1)))
    negatives, positives = probabilities[targets < 0.5], probabilities[targets >= 0.5]
    for rate in (0.003, 0.01, 0.05, 0.2, 0.7):
        height = [up for across, up in steps if across <= fpr_x(rate) + 0.01][-1]
        threshold = np.sort(negatives)[::-1][int(rate * len(negatives))]
        recall = float(np.mean(positives > threshold))
        assert (y(0) - height) / (y(0) - y(1)) == pytest.approx(recall, abs=0.03)


def test_fpr_axis_has_evenly_spaced_decades() -> None:
    assert [fpr_x(rate) for rate in (1e-4, 1e-3, 1e-2, 1e-1, 1)] == pytest.approx([x(at) for at, _ in FPR_TICKS], abs=0.01)
    assert fpr_x(0) == fpr_x(1e-9) == x(0)


def test_label_curves_stay_within_the_plot(table_of: Make) -> None:
    random = np.random.default_rng(2)
    targets, probabilities = random.choice([0.0, 0.4, 1.0, np.nan], 50_000), random.random(50_000)
    shown = drawn(targets, probabilities, 0.3, table_of)
    assert len(shown.precision_recall) < 8_000
    assert len(shown.roc) < 8_000
    marks = [shown.precision_recall_mark, shown.roc_mark]
    places = [
        *((m.x, m.y) for m in marks),
        *((dot.x, dot.y) for dot in shown.reliability_bins),
        *((bar.x, bar.y) for bar in shown.histogram),
    ]
    places += [(bar.x + bar.width, bar.y + bar.height) for bar in shown.histogram]
    places += [(dot.x, end) for dot in shown.reliability_bins for end in (dot.low_y, dot.high_y)]
    for path in (shown.precision_recall, shown.roc, *(m.cross for m in marks)):
        places += [(float(across), y(0)) for across in re.findall(r"[HM]([\d.]+)", path)]
        places += [(x(0), float(up)) for up in re.findall(r"V([\d.]+)", path)]
    assert all(x(0) <= across <= x(1) and y(1) <= down <= y(0) + 0.02 for across, down in places)


def test_reliability_diagram_has_wilson_intervals(table_of: Make) -> None:
    random = np.random.default_rng(6)
    probabilities = random.random(400)
    targets = (random.random(400) < probabilities).astype(float)
    for dot in drawn(targets, probabilities, 0.5, table_of).reliability_bins:
        items, share = int(dot.text.split()[0]), (y(0) - dot.y) / (y(0) - y(1))
        expected = binomtest(round(share * items), items).proportion_ci(0.95, "wilson")
        assert (dot.low_y, dot.high_y) == pytest.approx((y(expected.low), y(expected.high)), abs=0.05)


@settings(deadline=None)
@given(
    targets=arrays(np.float64, 60, elements=st.sampled_from([0.0, 1.0, np.nan])),
    probabilities=arrays(np.float64, 60, elements=st.floats(0, 1)),
    threshold=st.floats(0, 1),
)
def test_threshold_explorer_counts_are_exact(targets: np.ndarray, probabilities: np.ndarray, threshold: float) -> None:
    found = threshold_explorer(operating_points(targets, probabilities), probabilities, threshold)
    assert found.candidates[found.current].threshold == threshold
    thresholds = [candidate.threshold for candidate in found.candidates]
    assert thresholds == sorted(set(thresholds))
    for candidate in found.candidates:
        decided = decisions_at(targets, probabilities, candidate.threshold)
        assert (candidate.true_positives, candidate.false_positives) == (decided.true_positives, decided.false_positives)
        assert candidate.flagged == int((probabilities >= candidate.threshold).sum())
    assert found.current in [found.candidates.index(row) for row in found.table_rows]
    assert json.loads(found.to_json())["current"] == found.current


def test_page_of_weighted_items_weights_curves_and_candidate_thresholds(table_of: Make, tmp_path: Path) -> None:
    """A row of weight 3 is drawn and counted like three rows, and the page says so."""
    random = np.random.default_rng(7)
    targets, weights = (random.random(300) < 0.4).astype(float), random.integers(1, 4, 300)
    scores = np.clip(0.3 * targets + 0.7 * random.random(300), 0, 1).astype(np.float32).astype(float)
    rows = np.repeat(np.arange(300), weights)
    spec = EvaluationSpec(replicates=0)
    weighted = table_of({"a": (targets, scores)}, weight=weights.astype(float))
    repeated = table_of({"a": (targets[rows], scores[rows])})
    drawn_pages = []
    for table in (weighted, repeated):
        data = EvaluationData.from_table(table, ("a",), {"a": 0.5}, spec)
        render_evaluation_page(evaluate_data(data, {}), data, tmp_path / "report.html")
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        explorer = json.loads(html.unescape(re.search(r'data-explorer="(.*?)"', page)[1]))
        paths = re.findall(r'<path class="(?:curve|guide)" d="(.*?)"', page)
        drawn_pages.append((page, explorer, paths))
    (page, explorer, paths), (plain, expected, plain_paths) = drawn_pages
    assert paths == plain_paths
    at = {threshold: i for i, threshold in enumerate(expected["threshold"])}
    common = [(i, at[threshold]) for i, threshold in enumerate(explorer["threshold"]) if threshold in at]
    assert len(common) > 100
    for name in ("true_positives", "false_positives", "flagged"):
        assert [explorer[name][i] for i, _ in common] == [expected[name][j] for _, j in common]
    assert [explorer[name] for name in ("positives", "negatives", "items")] == [
        expected[name] for name in ("positives", "negatives", "items")
    ]
    assert "weighted by the items that each row represents" in page
    assert "weighted by the items that each row represents" not in plain


def test_page_warns_of_labels_that_are_not_a_random_sample(table_of: Make, tmp_path: Path) -> None:
    """All items with a high score are labelled, and a tenth of the others."""
    random = np.random.default_rng(8)
    scores = random.random(2000)
    targets = (random.random(2000) < scores).astype(float)
    for name, known in (("biased", (scores > 0.5) | (random.random(2000) < 0.1)), ("random", random.random(2000) < 0.5)):
        given = [target if k else None for target, k in zip(targets.tolist(), known.tolist(), strict=True)]
        data = EvaluationData.from_table(table_of({"a": (given, scores)}), ("a",), {"a": 0.5}, EvaluationSpec(replicates=0))
        results = evaluate_data(data, {})
        render_evaluation_page(results, data, tmp_path / "report.html")
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert results.label_selection is not None
        assert biased_labels(results) == (["a"] if name == "biased" else [])
        assert ("The labelled items are not a random sample</h2>" in page) == (name == "biased")
        assert ('href="#label-selection"' in page) == (name == "biased")
        assert summary_sentences(results)[0].startswith("The labelled items of a are") == (name == "biased")
        for line in results.label_selection.lines:
            assert html.escape(line) in page


def test_threshold_explorer_covers_rare_labels_and_stays_small() -> None:
    random = np.random.default_rng(3)
    targets = (random.random(200_000) < 0.001).astype(float)
    probabilities = random.beta(0.2, 500, 200_000) + 0.004 * targets * random.random(200_000)
    found = threshold_explorer(operating_points(targets, probabilities), probabilities, 0.5)
    assert len(found.to_json()) < 10_000
    recall = {round(candidate.true_positives / found.positives, 1) for candidate in found.candidates}
    assert recall >= {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0}
    assert 5 <= len(found.table_rows) <= 12


@given(st.lists(st.floats(0, 1), max_size=8))
def test_fit_axis_covers_all_values(values: list[float]) -> None:
    made = fit_axis([*values, None])
    assert 0 <= made.low < made.high <= 1 + 1e-9
    assert 2 <= len(made.ticks) <= 5
    assert all(made.low - 1e-6 <= value <= made.high + 1e-6 for value in values)
    assert all(0 <= float(made.position(value)) <= 100 for value in values)


def test_fit_axis_has_round_ticks() -> None:
    assert fit_axis([0.713, 0.94]).ticks == (0.7, 0.8, 0.9, 1.0)
    assert fit_axis([0.002, 0.0071]).ticks == (0.002, 0.004, 0.006, 0.008)
    assert fit_axis([]).ticks == (0, 0.5, 1)


def test_colour_classes_change_at_the_stated_bounds() -> None:
    assert [diverging_class(-bound) for bound in DIVERGING_BOUNDS] == ["w1", "w2", "w3", "w4"]
    assert [diverging_class(bound) for bound in DIVERGING_BOUNDS] == ["b1", "b2", "b3", "b4"]
    assert [diverging_class(v) for v in (None, 0.0, 0.0099, -0.0099)] == [""] * 4
    assert [error_rate_class(bound) for bound in ERROR_RATE_BOUNDS] == ["w1", "w2", "w3", "w4"]
    assert [error_rate_class(v) for v in (None, 0.0, 0.049)] == [""] * 3


def test_hardest_errors_are_sorted_by_confidence(table_of: Make) -> None:
    targets, probabilities = np.array([0, 0, 1, 1, np.nan, 0]), np.array([0.7, 0.9, 0.2, 0.1, 0.99, 0.1])
    table = table_of({"a": ([0, 0, 1, 1, None, 0], probabilities)}, presence=["text"] * 6, language=[None, "en"] * 3)
    errors = hardest_errors(targets, probabilities, 0.5)
    false_positives, false_negatives = (kind.entries(table, ["presence", "language"], {}, "a") for kind in errors)
    assert [(m.id, m.probability, m.columns) for m in false_positives] == [
        ("item-1", 0.9, {"presence": "text", "language": "en"}),
        ("item-0", 0.7, {"presence": "text"}),
    ]
    assert [m.id for m in false_negatives] == ["item-3", "item-2"]
    assert [kind.count for kind in errors] == [2, 2]


def test_hardest_errors_take_texts_from_examples_or_the_table_and_cut_them(table_of: Make) -> None:
    table = table_of({"a": ([0, 0, 0], [0.9, 0.8, 0.7])}, text=[["one", None, "two"], ["x" * (MAX_CHARACTERS + 7)], None])
    evidence = (SegmentEvidence("text", "text 1, characters 1 to 2", 0.7, "ab"),)
    examples = {"item-2": ItemExample(("from an example",), {"a": evidence, "b": ()})}
    false_positives, _ = hardest_errors(np.zeros(3), np.array([0.9, 0.8, 0.7]), 0.5)
    first, second, third = false_positives.entries(table, [], examples, "a")
    assert [(p.pieces, p.left_out) for p in first.excerpts] == [([("one", False)], 0), ([("two", False)], 0)]
    assert [([len(text) for text, _ in p.pieces], p.left_out) for p in second.excerpts] == [([MAX_CHARACTERS], 7)]
    assert ([p.pieces for p in third.excerpts], third.evidence) == ([[("from an example", False)]], evidence)


def test_hardest_errors_mark_the_spans_of_their_label(table_of: Make) -> None:
    table = table_of({"a": ([0], [0.9])})
    spans = [MarkedSpan("a", 0, 4, 7, 0.9), MarkedSpan("a", 0, 8, 9, 0.8), MarkedSpan("a", 1, 0, 1, 0.7)]
    spans.append(MarkedSpan("a", 0, MAX_CHARACTERS - 2, MAX_CHARACTERS + 5, 0.9))
    text = "one <b> " + "x" * MAX_CHARACTERS
    examples = {"item-0": ItemExample((text, "y"), {}, {"a": tuple(sorted(spans, key=lambda s: s.start)), "b": ()})}
    false_positives, _ = hardest_errors(np.zeros(1), np.array([0.9]), 0.5)
    [error] = false_positives.entries(table, [], examples, "a")
    middle = "x" * (MAX_CHARACTERS - 11)
    assert error.excerpts[0].pieces == [("one ", False), ("<b>", True), (" ", False), ("x", True), (middle, False), ("xx", True)]
    assert [excerpt.pieces for excerpt in error.excerpts[1:]] == [[("y", True)]]


def test_hardest_error_ids_are_the_items_on_the_page(report_case: dict[str, Any], tmp_path: Path) -> None:
    results, data = report_case["results"], report_case["data"]
    ids = hardest_error_ids(data)
    assert len(ids) == len(set(ids)) > 20
    render_evaluation_page(results, data, tmp_path / "report.html")
    shown = re.findall(r'<bdi class="id">(.*?)</bdi>', (tmp_path / "report.html").read_text())
    assert set(shown) == set(ids)


def test_remarks_name_weak_slices(table_of: Make) -> None:
    right = [True] * 30 + [False] * 12 + [True] * 18 + [True] * 5
    probabilities = [0.1 if r else 0.9 for r in right]
    table = table_of({"a": ([0] * 65, probabilities)}, market=["x"] * 30 + ["y"] * 30 + ["z"] * 5)
    results = evaluate_table(table, ("a",), {"a": 0.5}, EvaluationSpec(slices=("market",), replicates=0), {})
    lines = [remark.text for remark in remarks(results)]
    assert any(
        line.startswith("Where market is y, 60.0% of 30 items have no wrong decision, compared with 100.0% of all others")
        for line in lines
    )
    assert not any("market is z" in line or "market is x" in line for line in lines)


def test_remarks_name_every_planted_problem(report_case: dict[str, Any]) -> None:
    found = remarks(report_case["results"])
    by_topic: dict[str, list[str]] = {}
    for remark in found:
        by_topic.setdefault(remark.topic, []).append(remark.text)
    assert "presence is text+image and language is de" in by_topic["Weak slice"][0]
    assert "mention bakers, more negatives are flagged for tobacco" in by_topic["Unequal treatment"][0]
    assert "unlabelled (no item has a known target)" in by_topic["Not ranked"][0]
    assert by_topic["Absent columns"] == ["Requested columns that are absent from the predictions: absent."]
    broken = [s for s in report_case["results"].policy.constraints if s.met is False]
    assert len(by_topic.get("Constraint violated", [])) == len(broken)
    assert all(
        re.search(r"\d", remark.text) for remark in found if remark.topic not in {"Absent columns", "Not ranked", "Never flagged"}
    )


def test_summary_sentences_state_the_results(report_case: dict[str, Any]) -> None:
    results = report_case["results"]
    sentences = " ".join(summary_sentences(results))
    assert f"At the thresholds below, {results.overall.all_right:.1%} (" in sentences
    assert f"catches {results.overall.macro['recall'].value:.1%} (" in sentences
    assert "on average over 3 of 4 labels" in sentences
    assert "Under the policy forum, version 1" in sentences


def test_remarks_count_gaps_and_those_expected_by_chance(report_case: dict[str, Any]) -> None:
    results = report_case["results"]
    every = subgroup_gaps(results)
    apart = [gap for gap in every if not gap.interval.low <= 0 <= gap.interval.high]
    assert len(apart) == sum(gap.margin > 0 for gap in every)
    text = next(remark.text for remark in remarks(results) if remark.topic == "All gaps")
    assert f" of {len(every)} gaps" in text
    assert text.startswith(f"{len(apart)} of ")
    assert f"about {0.05 * len(every):.0f} would by chance alone." in text


def test_heatmap_rows_are_negative_where_the_subgroup_fares_worse(report_case: dict[str, Any]) -> None:
    results = report_case["results"]
    row = next(row for row in heatmap_rows(results, "tobacco") if row.value == "bakers")
    gap, auc = row.cells["false_positive_gap"], row.cells["bpsn_auc"]
    assert (gap.value > 0.2, diverging_class(gap.difference), gap.significant) == (True, "w4", True)
    assert auc.difference == pytest.approx(auc.value - results.overall.labels["tobacco"].auroc)
    assert auc.significant == (auc.interval.high < results.overall.labels["tobacco"].auroc)


def test_slice_plots_hold_every_metric_and_label(report_case: dict[str, Any]) -> None:
    results = report_case["results"]
    at = next(i for i, b in enumerate(results.by) if b.column == "language")
    data = json.loads(slice_plots(results)[at].data)
    for metric, held in zip(SLICE_METRICS, data["metrics"], strict=True):
        for label, cells in zip([None, *results.overall.labels], held["cells"], strict=True):
            for group, volumes, (value, *rest) in zip(results.by[at].groups, results.volumes.by[at].groups, cells, strict=True):
                if metric == "flagged":
                    share = volumes.any_label if label is None else volumes.labels[label]
                    expected, interval = share.value, share.interval
                elif label is not None:
                    expected, interval = getattr(group.labels[label], metric), group.labels[label].intervals.get(metric)
                elif metric == "accuracy":
                    expected, interval = group.all_right, group.all_right_interval
                else:
                    expected, interval = group.macro[metric].value, group.macro[metric].interval
                assert value == (None if expected is None else pytest.approx(expected, abs=1e-5))
                if interval is not None:
                    assert rest[:2] == pytest.approx(list(interval), abs=1e-5)
                    assert held["ticks"][0] - 1e-5 <= rest[0] <= rest[1] <= held["ticks"][-1] + 1e-5


def unlabelled(table: pa.Table) -> pa.Table:
    return table.select([name for name in table.column_names if not name.startswith("target.")])


def test_page_of_an_unlabelled_table_has_volumes_and_no_metrics(report_case: dict[str, Any], tmp_path: Path) -> None:
    """The same items without their targets: what needs no labels is unchanged, and nothing else is on the page."""
    data, results = report_case["data"], report_case["results"]
    bare = EvaluationData.from_table(unlabelled(data.table), data.labels, data.thresholds, data.spec)
    found = evaluate_data(bare, {"run": "winter"}, calibrated=report_case["calibrated"], policy=report_case["policy"])
    assert not found.labelled
    assert found.volumes == results.volumes
    assert found.conformal.drift == results.conformal.drift
    assert [action.share for action in found.policy.actions] == [action.share for action in results.policy.actions]
    render_evaluation_page(found, bare, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    elements = Elements(page)
    assert elements.open == []
    ids = {attributes["id"] for _, attributes in elements.tags if "id" in attributes}
    assert {"summary", "volumes", "slices", "calibration", "abstention", "drift", "policy"} <= ids
    assert not ids & {"labels", "curves", "worst-slices", "fairness", "functional-tests", "confusion", "errors"}
    assert {a["href"][1:] for tag, a in elements.tags if tag == "a" and (a.get("href") or "").startswith("#")} <= ids
    assert "nothing is labelled" in page
    for share in found.volumes.overall.labels.values():
        assert f">{format_percent(share.value)}" in page
    assert [plot.metrics for plot in slice_plots(found)] == [["Share flagged"]] * len(found.by)
    assert "Not ranked" not in {remark.topic for remark in remarks(found)}


def test_remarks_name_extreme_volumes(table_of: Make) -> None:
    """More than half of all items flagged, reviewed or acted on, unless as many are positive; and labels that flag none."""
    scores = np.linspace(0, 1, 100)
    many = table_of({"a": ([1] * 10 + [0] * 90, scores), "b": ([1] * 70 + [0] * 30, scores)})
    thresholds, spec = {"a": 0.4, "b": 0.4}, EvaluationSpec(replicates=50)
    found = {r.topic: r.text for r in remarks(evaluate_table(many, ("a", "b"), thresholds, spec, {}))}
    assert found["Most items flagged"].startswith("a flags 60.0% (")
    assert found["Most items flagged"].endswith(" of all 100 items; 10 of the 100 known ones are positive.")
    topics = [r.topic for r in remarks(evaluate_table(many, ("a", "b"), {"a": 0.505, "b": 0.4}, spec, {}))]
    assert not {"Most items flagged", "Most items reviewed"} & set(topics)
    none = evaluate_table(unlabelled(many), ("a", "b"), {"a": 1.0, "b": 2.0}, spec, {})
    assert {r.topic: r.text for r in remarks(none)}["Never flagged"] == "None of 100 items reaches the threshold of b."
    spec = EvaluationSpec(replicates=50, calibration=CalibrationSpec(methods=()))
    calibrated = fit_calibration([[1.0]] * 40 + [[0.0]] * 40, [[p] for p in [0.3] * 40 + [0.1] * 40], ("a",), spec)
    reviewed = table_of({"a": ([0] * 100, [0.31] * 60 + [0.05] * 40)})
    results = evaluate_table(reviewed, ("a",), {"a": 0.9}, spec, {}, calibrated=calibrated)
    assert results.conformal is not None
    assert results.conformal.reviewed_any == 0.6
    text = next(r.text for r in remarks(results) if r.topic == "Most items reviewed")
    assert text == "60.0% of all 100 items reach the review threshold."


def test_page_states_the_rule_that_selects_a_calibrator(full_page: str) -> None:
    assert "simplest method whose cross-validated log loss on the calibration split is within one standard error" in full_page
    assert "lowest cross-validated log loss" not in full_page


def test_page_states_which_numbers_have_no_interval(full_page: str, report_case: dict[str, Any]) -> None:
    macro = report_case["results"].overall.macro
    assert [name for name, mean in macro.items() if mean.value is not None and mean.interval is None] == ["calibration_error"]
    assert "each number but the mean calibration error" in full_page
    assert 'id="without-interval"' in full_page


@pytest.mark.parametrize("template", sorted(Path(TEMPLATES).rglob("*.jinja")), ids=lambda file: file.name)
def test_templates_explain_every_term_of_art_in_their_headings(template: Path) -> None:
    """A heading is a plain word, a term of the glossary, or has a tooltip of its own."""
    plain = {"Label", "Items", "Share", "Value", "Original", "Counterpart", "Probability", "Failure", "Constraint", "Action"}
    plain |= {"Thresholds", "Champion", "Challenger", "Reason", "Item", "True label", "Slice", "Change", "Flagged by", "Metric"}
    plain |= {"Compared", "Items compared", "Comparisons", "Regressions", "Improvements", "Flipped items", "Not comparable"}
    plain |= {"macro average", "Recall at "}
    plain |= {
        "Labels",
        "Known targets",
        "Sources",
        "Languages",
        "Leaks",
        "First positive",
        "Second positive",
        "Both positive",
    }
    plain |= {"Source", "Labels that it knows", "Licence", "Citation", "Split", "Column", "Type", "Items with a value", "Version"}
    plain |= {"Written", "Operation", "Modality"}
    headings = re.findall(r'm\.(?:heading|column|tile)\("([^"]+)"(?:, "([^"]+)")?', template.read_text(encoding="utf-8"))
    assert [name for name, hint in headings if not hint and name not in {*plain, *TERMS}] == []


def test_render_evaluation_page_stays_small_for_large_data(table_of: Make, tmp_path: Path) -> None:
    """Twenty labels by two columns of 30 groups, from 20,000 items; only the listed errors are on the page."""
    random, rows = np.random.default_rng(4), 20_000
    labels = {}
    for i in range(20):
        targets = (random.random(rows) < 0.1).astype(float)
        labels[f"label_{i}"] = (targets, np.clip(0.3 * targets + 0.7 * random.random(rows), 0, 1))
    columns = {name: [f"{name} {n}" for n in random.integers(0, 30, rows)] for name in ("market", "language")}
    table = table_of(labels, text=["A neutral text. " * 20] * rows, presence=["text"] * rows, **columns)
    started = time.perf_counter()
    spec = EvaluationSpec(slices=tuple(columns), replicates=20)
    data = EvaluationData.from_table(table, list(labels), dict.fromkeys(labels, 0.5), spec)
    results = evaluate_data(data, {})
    measured = time.perf_counter()
    render_evaluation_page(results, data, tmp_path / "report.html")
    size, took = (tmp_path / "report.html").stat().st_size, time.perf_counter() - measured
    print(f"{size / 1e6:.2f} MB, rendered in {took:.1f} s after {measured - started:.1f} s of evaluation")
    assert size < 3_000_000
    assert took < 20
