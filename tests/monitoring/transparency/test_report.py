"""Transparency reports: the template's tables against an independent count, and the page in a browser."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import CONTRAST, Browser
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.errors import UserError
from vigil_evaluation.stats.intervals import Interval
from vigil_monitoring.estimates.label_answers import ANY, DomainEstimate
from vigil_monitoring.estimates.online_metrics import MetricRow, MetricsResult
from vigil_monitoring.results import Period, read_results, write_result
from vigil_monitoring.survey.estimators import Estimate
from vigil_monitoring.transparency import AutomatedAccuracy, Identification, TransparencyMapping, TransparencyReport, write_report
from vigil_monitoring.transparency.accuracy import read_accuracy
from vigil_monitoring.transparency.counts import language_code, publish_appeals
from vigil_monitoring.transparency.people import Appeal, HumanMeasure
from vigil_monitoring.transparency.template import WITHHELD, csv_text

from .conftest import decision, write_traffic

PERIOD = Period(date(2026, 11, 1), date(2026, 11, 30))
LATER = datetime(2026, 11, 20, tzinfo=UTC)
MEASURES_HEADER = [
    "Applicability",
    "Service",
    "Reporting period",
    "Category of illegal content",
    'Description of the sub-category "Other"',
    "Number of measures taken at the provider's own initiative",
    "Number of measures taken after detection with solely automated means",
    "Visibility restriction Removal",
    "Visibility restriction Disable",
    "Visibility restriction Demoted",
    "Visibility restriction Age restricted",
    "Visibility restriction Interaction restricted",
    "Visibility restriction Labelled",
    "Visibility restriction Other",
    "Monetary restriction Suspension",
    "Monetary restriction Termination",
    "Monetary restriction Other",
    "Provision of the service Suspension",
    "Provision of the service Termination",
    "Account restriction Suspension",
    "Account restriction Termination",
]
"""Columns of table 5 in reports that providers filed for 2026, before those of contextual information."""


def appeal(number: int, outcome: Any = "upheld", **values: Any) -> Appeal:
    decided = None if outcome is None else LATER.replace(hour=6)
    by = None if outcome is None else "human"
    return Appeal(f"item-{number}", LATER, outcome, by, decided, "visibility", new_restriction=False, settlement=False)._replace(
        **values
    )


def traffic_rows() -> list[dict[str, Any]]:
    random = np.random.default_rng(3)
    rows = []
    for number in range(400):
        action = str(random.choice(["allow", "label", "remove", "review"], p=[0.5, 0.25, 0.2, 0.05]))
        label = str(random.choice(["hate", "spam"]))
        language = str(random.choice(["de-DE", "fr", "mt"], p=[0.7, 0.28, 0.02]))
        rows.append(decision(number, action, label, language=language))
    return rows


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def report(folder: Path, mapping: TransparencyMapping, rows: list[dict[str, Any]], **values: Any) -> TransparencyReport:
    folder.mkdir(exist_ok=True)
    identification = Identification("Example", "Example Ltd", PERIOD)
    written, files = write_report(write_traffic(folder, rows), mapping, identification, folder / "report", **{"k": 1, **values})
    assert all(file.is_file() for file in files)
    return written


def test_template_counts_what_an_independent_count_finds(tmp_path: Path, mapping: TransparencyMapping) -> None:
    rows = traffic_rows()
    people = [HumanMeasure("new", LATER, "spam", "remove", "human", "notice", "post", "fr", None)]
    found = report(tmp_path, mapping, rows, by_people=people)
    counts = Counter((row["reasons"][0]["label"], row["action"]) for row in rows if row["action"] in ("label", "remove"))
    columns = list(table(tmp_path / "report", "5_own_initiative_illegal")[0])
    assert columns == [*MEASURES_HEADER, *(f"Contextual Information on {column}" for column in MEASURES_HEADER[5:])]
    for name, label in (("5_own_initiative_illegal", "hate"), ("6_own_initiative_TC", "spam")):
        lines = {
            (row['Description of the sub-category "Other"'], list(row.values())[3]): row
            for row in table(tmp_path / "report", name)
        }
        places = ["TOTAL", "STATEMENT_CATEGORY_ILLEGAL_OR_HARMFUL_SPEECH", "KEYWORD_HATE_SPEECH"]
        if label == "spam":
            places = ["TOTAL", "STATEMENT_CATEGORY_OTHER_VIOLATION_TC"]
            assert lines["spam", "KEYWORD_OTHER"]["Visibility restriction Removal"] == str(counts["spam", "remove"])
        for place in places:
            line = lines["", place]
            assert line["Number of measures taken at the provider's own initiative"] == str(
                counts[label, "label"] + counts[label, "remove"]
            )
            assert line["Visibility restriction Labelled"] == str(counts[label, "label"])
            assert line["Account restriction Suspension"] == str(counts[label, "remove"])
            assert line["Visibility restriction Disable"] == "0"
        assert lines["", "STATEMENT_CATEGORY_VIOLENCE"]["Number of measures taken at the provider's own initiative"] == "0"
    lines_5 = table(tmp_path / "report", "5_own_initiative_illegal")
    assert len(lines_5) == 1 + 14 + 61 + 14  # total, categories, their sub-categories, and one "other" each
    automated = {(row["Indicator"], row["Scope"]): row["Value"] for row in table(tmp_path / "report", "8_automated_means")}
    solely = "Number of measures solely taken by automated means"
    assert automated[solely, "Total number"] == automated[solely, "Own-initiative"] == str(counts.total())
    by_language = Counter(language_code(row["language"]) for row in rows if row["action"] in ("label", "remove"))
    assert [automated[solely, language] for language in ("de", "fr", "mt", "sv")] == [
        str(by_language[c]) for c in ("de", "fr", "mt", "sv")
    ]
    human = "Number of measures not taken by automated means"
    assert (automated[human, "Total number"], automated[human, "Own-initiative"]) == ("1", "0")
    assert (found.decisions, found.measures, found.automated, found.human) == (400, counts.total() + 1, counts.total(), 1)
    assert found.withheld == 0


def test_report_withholds_small_counts_in_every_file(tmp_path: Path, mapping: TransparencyMapping) -> None:
    rows = traffic_rows()
    rare = sum(row["language"] == "mt" and row["action"] in ("label", "remove") for row in rows)
    assert 0 < rare < 10
    found = report(tmp_path, mapping, rows, k=10, appeals=[appeal(n, "reversed" if n < 3 else "upheld") for n in range(40)])
    by_language = {row.name: row.count for row in found.by_language}
    assert by_language["mt"] is None
    assert [by_language["de"], by_language["fr"]].count(None) == 1  # or the total would give it away
    automated = table(tmp_path / "report", "8_automated_means")
    maltese = [row for row in automated if row["Scope"] == "mt" and "solely taken" in row["Indicator"]]
    assert [(row["Value"], row["Contextual Information"]) for row in maltese] == [("", WITHHELD)]
    complaints = {row["Scope"]: row["Value"] for row in table(tmp_path / "report", "7_appeals_and_recidivism")[:6]}
    assert complaints["Decisions reversed"] == ""
    assert [complaints["Total number"], complaints["Decisions upheld"]].count("") == 1
    (result,) = read_results(tmp_path / "report")
    assert result.read(TransparencyReport) == found
    page = (tmp_path / "report" / "transparency.html").read_text(encoding="utf-8")
    assert f"{found.withheld} of the counts are withheld" in page


def test_report_without_complaints_or_metrics_leaves_their_cells_empty(tmp_path: Path, mapping: TransparencyMapping) -> None:
    report(tmp_path, mapping, traffic_rows())
    assert {row["Value"] for row in table(tmp_path / "report", "7_appeals_and_recidivism")} == {""}
    accuracy = [row for row in table(tmp_path / "report", "8_automated_means") if row["Indicator"].startswith("Accuracy")]
    assert {row["Value"] for row in accuracy} == {""}
    assert len(table(tmp_path / "report", "7_appeals_and_recidivism")) == 6 + 1 + 6 * 5 + 7 + 3  # as in the reports of providers


def test_report_states_times_and_accuracy(tmp_path: Path, mapping: TransparencyMapping) -> None:
    shares = [AutomatedAccuracy("Precision", "", 0.9, 0.85, 0.94, 0.95), AutomatedAccuracy("Recall", "de", 0.6, 0.4, 0.8, 0.95)]
    found = report(tmp_path, mapping, traffic_rows(), accuracy=shares)
    assert {(time.action, time.means, time.median_seconds) for time in found.times} == {
        (action, means, 120.0) for action in ("", "label", "remove") for means in ("", "automated")
    }
    automated = {(row["Indicator"], row["Scope"]): row for row in table(tmp_path / "report", "8_automated_means")}
    line = automated["Accuracy of the automated means - Precision", "Total number"]
    assert (line["Value"], line["Contextual Information"][:30]) == ("0.9000", "95% interval 0.8500 to 0.9400,")
    assert automated["Accuracy of the automated means - Recall", "de"]["Value"] == "0.6000"


def test_publish_appeals_counts_and_takes_medians() -> None:
    first = [appeal(n, decided=LATER.replace(hour=n + 1)) for n in range(3)]
    rows = [*first, appeal(8, "reversed", regarding="account", new_restriction=True), appeal(9, None)]
    found = publish_appeals([*rows, appeal(10, "partially reversed", settlement=True)], k=1)
    every = found.rows[0]
    assert (every.submitted, every.upheld, every.reversed, every.undecided, every.omitted) == (5, 3, 1, 1, 0)
    assert {row.regarding: row.median_hours for row in found.rows if row.submitted and row.regarding} == {
        "visibility": 2.0,
        "account": 6.0,
    }
    assert (found.new_restrictions, found.by_people, found.by_model) == (1, 4, 0)
    assert [(row.settlement, row.partially_reversed) for row in found.rows if row.settlement] == [(True, 1)]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text("ab,;\"'=+-@\n 7", max_size=6), min_size=1, max_size=4))
def test_csv_text_is_read_back_and_holds_no_formula(row: list[str]) -> None:
    (found,) = csv.reader(io.StringIO(csv_text([row]), newline=""))
    assert found == [f"'{cell}" if cell[:1] in ("=", "+", "-", "@") and cell else cell for cell in row]


@pytest.fixture(scope="module")
def browser(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(chromium, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.mark.parametrize("dark", [False, True])
def test_page_fits_every_width_and_has_contrast(
    tmp_path: Path, mapping: TransparencyMapping, browser: Browser, dark: bool
) -> None:
    hostile = "<script>document.title = 'run'</script>" + "x" * 80
    rows = [*traffic_rows(), decision(900, "remove", content_type=hostile, language="ar")]
    shares = [AutomatedAccuracy("Precision", "", 0.9, 0.85, 0.94, 0.95)]
    report(tmp_path, mapping, rows, k=10, appeals=[appeal(n) for n in range(30)], accuracy=shares)
    for width in (390, 900, 1400):
        browser.open((tmp_path / "report" / "transparency.html").as_uri(), width, dark=dark)
        assert browser.evaluate("document.title") == "Example, 2026-11-01 to 2026-11-30"
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate(CONTRAST)["low"] == []
    assert browser.messages == []


def metrics_row(metric: str, action: str, *, by: str = "", value: str = "", share: float | None = 0.8) -> MetricRow:
    interval = None if share is None else Interval(share - 0.1, share + 0.1)
    estimate = Estimate(share, interval, "hajek", 100, 80, 90.0)
    return MetricRow(metric, action, ANY, by, value, "items", 100.0, DomainEstimate(estimate, 0.0, None))


def metrics_file(folder: Path, *rows: MetricRow, biased: bool = False, period: Period = PERIOD, kind: str = "metrics") -> Path:
    result = MetricsResult("traffic", "queue", ("hate",), 0.9, None, biased, ("house 3",), rows, (), None, ())
    write_result(folder / "metrics.json", kind, period, asdict(result))
    return folder / "metrics.json"


def test_read_accuracy_of_the_policy_as_a_whole(tmp_path: Path) -> None:
    rows = [metrics_row("precision", "remove", share=0.5), metrics_row("precision", "any action")]
    rows += [metrics_row("recall", "any action", by="language", value="de-DE"), metrics_row("recall", "any action", share=None)]
    rows += [
        metrics_row("false_positive_rate", "any action"),
        metrics_row("precision", "any action", by="week", value="2026-W45"),
    ]
    found = read_accuracy(metrics_file(tmp_path, *rows), PERIOD)
    assert [(of.indicator, of.language, of.value, of.confidence) for of in found] == [
        ("Precision", "", 0.8, 0.9),
        ("Recall", "de", 0.8, 0.9),
    ]
    (only,) = read_accuracy(
        metrics_file(tmp_path, metrics_row("precision", "remove"), metrics_row("precision", "review")), PERIOD
    )
    assert only.value == 0.8


def test_read_accuracy_refuses_what_is_no_measure_of_the_period(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a result of kind prevalence, not metrics"):
        read_accuracy(metrics_file(tmp_path, kind="prevalence"), PERIOD)
    with pytest.raises(UserError, match="its metrics are biased"):
        read_accuracy(metrics_file(tmp_path, biased=True), PERIOD)
    december = Period(date(2026, 12, 1), date(2026, 12, 2))
    with pytest.raises(UserError, match="its metrics are of 2026-12-01 to 2026-12-02, not of days within 2026-11-01"):
        read_accuracy(metrics_file(tmp_path, period=december), PERIOD)
