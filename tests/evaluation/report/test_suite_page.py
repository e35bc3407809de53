"""The page of a functional test suite: shows the results, fetches nothing, and executes nothing from the data."""

from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

from vigil_evaluation.evaluation_data import EvaluationData
from vigil_evaluation.report.suite_page import render_suite_page, suite_remarks, suite_sentences
from vigil_evaluation.specs import EvaluationSpec
from vigil_evaluation.suites.results import SuiteResults, functional_test_results

NASTY = '<script>alert("x")</script>'


class Page(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.values, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.values += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.texts.append(data.strip())


def outcome_of(labels, **columns):
    random = np.random.default_rng(0)
    table = {"id": [f"{NASTY}{n}" for n in range(120)]}
    for label in labels:
        table[f"target.{label}"] = pa.array((random.random(120) < 0.5).astype(np.float32))
        table[f"probability.{label}"] = pa.array(random.random(120).astype(np.float32))
    table["functionality"] = [NASTY if n % 3 else "negation" for n in range(120)]
    made = pa.table({**table, **columns})
    spec = EvaluationSpec(replicates=50)
    found = functional_test_results(EvaluationData.from_table(made, labels, dict.fromkeys(labels, 0.5), spec))
    return SuiteResults(
        suite=NASTY,
        facts={"run": NASTY},
        descriptions={"negation": NASTY},
        thresholds=dict.fromkeys(labels, 0.5),
        skipped=["absent_label"],
        findings=found,
    )


@pytest.mark.parametrize("labels", [["scam"], ["scam", "tobacco"]])
def test_render_suite_page_shows_the_results_and_executes_nothing(labels, tmp_path):
    ids = [f"{NASTY}{n}" for n in range(120)]
    outcome = outcome_of(
        labels,
        identity=[NASTY if n % 2 else "rovers" for n in range(120)],
        pair=[ids[n - 1] if n % 2 else None for n in range(120)],
        perturbation=[NASTY] * 120,
    )
    render_suite_page(outcome, tmp_path / "suite.html")
    page = Page((tmp_path / "suite.html").read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1
    assert not [value for _, name, value in page.values if name in ("src", "href") and not value.startswith(("#", "data:"))]
    assert {"negation", NASTY, "rovers"} <= set(page.texts)
    assert any("absent_label" in text for text in page.texts)
    for case in outcome.findings.cases:
        assert f"{case.labels['scam'].accuracy.value:.1%}" in page.texts
    failed = outcome.findings.pairs.worst
    assert failed
    assert all(pair.original in page.texts for pair in failed)
    assert [path.name for path in tmp_path.iterdir()] == ["suite.html"]


def test_render_suite_page_omits_sections_without_groups_and_pairs(tmp_path):
    render_suite_page(outcome_of(["scam"]), tmp_path / "suite.html")
    page = Page((tmp_path / "suite.html").read_text(encoding="utf-8"))
    ids = {value for _, name, value in page.values if name == "id"}
    assert {"tests", "how-to-read"} <= ids
    assert not ids & {"groups", "minimal-pairs"}
    assert {value[1:] for tag, name, value in page.values if tag == "a" and name == "href"} <= ids


def test_suite_sentences_and_remarks_state_the_results(tmp_path):
    """One test is failed, one group is treated worse, and half of the pairs change; the summary is on the page."""
    names = ["negation"] * 40 + ["plain"] * 160
    right = [False] * 35 + [True] * 5 + [True] * 100 + [False] * 30 + [True] * 30
    ids = [f"item-{n}" for n in range(200)]
    made = pa.table(
        {
            "id": ids,
            "target.scam": pa.array([1.0] * 200, pa.float32()),
            "probability.scam": pa.array([0.9 if one else 0.1 for one in right], pa.float32()),
            "functionality": names,
            "identity": [None] * 40 + ["rovers"] * 100 + ["city"] * 60,
            "pair": [None] * 100 + ids[40:100] + [None] * 39 + ["absent"],
        }
    )
    spec = EvaluationSpec(replicates=50)
    found = functional_test_results(EvaluationData.from_table(made, ["scam"], {"scam": 0.5}, spec))
    suite = SuiteResults(suite="s", facts={}, descriptions={}, thresholds={"scam": 0.5}, skipped=["spam"], findings=found)
    first, ranking, *pairs = suite_sentences(suite)
    assert first == (
        "200 items test 2 functionalities for 1 label. 135 of the 200 items with a known target have no wrong decision, 67.5%."
    )
    assert ranking.startswith("The lowest accuracy is that of negation, 12.5% (")
    assert "; the highest that of plain, 81.2% (" in ranking
    assert [sentence.split(" (")[0] for sentence in pairs] == ["Of minimal pairs whose label should stay, 33.3%"]
    remarks = {remark.topic: remark.text for remark in suite_remarks(suite)}
    assert remarks["Failed test"].startswith("negation: 12.5% (")
    assert remarks["Failed test"].endswith("of 40 items are decided correctly for scam, worse than a coin toss.")
    assert remarks["Unequal groups"].startswith("scam is decided correctly for 50.0% (")
    assert "where identity is city, and for 100.0% (" in remarks["Unequal groups"]
    assert remarks["Skipped labels"] == "The model does not have these labels of the suite: spam."
    assert remarks["Incomplete pairs"] == "1 item names a counterpart that is absent."
    render_suite_page(suite, tmp_path / "suite.html")
    page = Page((tmp_path / "suite.html").read_text(encoding="utf-8"))
    assert {first, ranking} <= set(page.texts)
    assert {value[1:] for tag, name, value in page.values if tag == "a" and name == "href"} <= {
        value for _, name, value in page.values if name == "id"
    } | {"content"}
