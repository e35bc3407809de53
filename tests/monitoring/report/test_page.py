"""The dashboard's page in a browser, its charts, and the numbers that Prometheus and Grafana get."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import date, timedelta
from pathlib import Path

import pytest
from chromium import CONTRAST, Browser
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from vigil_evaluation.report import curves
from vigil_evaluation.stats.intervals import Interval
from vigil_monitoring.report import read_dashboard, read_history, write_page, write_prometheus
from vigil_monitoring.report.charts import bar_chart, maturity_chart, series_chart, short_count
from vigil_monitoring.report.dashboard import Curve, Dashboard, Point, Series
from vigil_monitoring.report.page import remarks
from vigil_monitoring.results import Period, write_result
from vigil_monitoring.traffic import open_traffic

from .results import drift_result, experiment_result, prevalence_result, week, write_results, write_weeks_of_traffic

REPOSITORY = Path(__file__).resolve().parents[3]
OCTOBER = Period(date(2026, 10, 1), date(2026, 10, 31))


@pytest.fixture
def dashboard(tmp_path: Path) -> Dashboard:
    write_results(tmp_path / "results")
    write_weeks_of_traffic(tmp_path / "traffic.parquet")
    return read_dashboard(tmp_path / "results", read_history(open_traffic(tmp_path / "traffic.parquet")))


@pytest.fixture(scope="module")
def browser(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(chromium, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.mark.parametrize("dark", [False, True])
def test_page_fits_every_width_and_has_contrast(tmp_path: Path, dashboard: Dashboard, browser: Browser, dark: bool) -> None:
    hostile = "<script>document.title = 'run'</script>" + "x" * 80
    write_result(tmp_path / "results" / "z.json", "experiment", week(4), asdict(experiment_result(hostile, "reject")))
    write_page(read_dashboard(tmp_path / "results", dashboard.history), tmp_path / "report.html")
    for width in (390, 900, 1400):
        browser.open((tmp_path / "report.html").as_uri(), width, dark=dark)
        assert browser.evaluate("document.title") == "Monitoring, 2026-10-05 to 2026-11-08"
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate(CONTRAST)["low"] == []
        overlap = """[...document.querySelectorAll("svg text")].filter((text) => {
          const own = text.getBoundingClientRect(), plot = text.ownerSVGElement.getBoundingClientRect();
          return own.left < plot.left - 1 || own.right > plot.right + 1;
        }).map((text) => text.textContent)"""
        assert browser.evaluate(overlap) == []
    assert browser.evaluate("document.querySelectorAll('#prevalence svg').length") == 4
    assert browser.evaluate("document.querySelectorAll('#volumes svg rect').length") > 100
    assert browser.messages == []


def test_page_of_an_empty_section_names_the_command(tmp_path: Path) -> None:
    write_result(tmp_path / "drift.json", "drift", week(0), asdict(replace(drift_result(), alarms=[])))
    write_page(read_dashboard(tmp_path), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for command in ("prevalence", "metrics", "experiment"):
        assert f"No result of <code>vigil monitor {command}</code>" in page
    assert "<p>No alarm.</p>" in page
    assert "<code>--traffic TRAFFIC</code>" in page


def test_page_loads_nothing(tmp_path: Path, dashboard: Dashboard) -> None:
    write_page(dashboard, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", page)
    assert "default-src 'none'" in page


def test_remarks_name_alarms_verdicts_and_rises(tmp_path: Path, dashboard: Dashboard) -> None:
    assert [(of.section, of.topic) for of in remarks(dashboard)] == [
        ("drift", "Drift of score"),
        ("experiments", "larger encoder"),
    ]
    for number, (value, biased) in enumerate([(0.002, False), (0.02, True)]):
        body = prevalence_result({"hate": value}, biased=biased)
        write_result(tmp_path / "two" / f"{number}.json", "prevalence", week(number), asdict(body))
    found = remarks(read_dashboard(tmp_path / "two"))
    assert [of.topic for of in found] == ["Biased estimates", "hate"]
    assert "prevalence rose from 0.20% to 2.0%" in found[1].text


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.floats(0, 1), st.floats(0, 0.3)), min_size=1, max_size=6, unique_by=lambda of: of[0]
    )
)
def test_series_chart_stays_in_its_frame_and_in_order(points: list[tuple[int, float, float]]) -> None:
    made = []
    for day, value, half in sorted(points):
        at = OCTOBER.start + timedelta(days=day)
        made.append(Point(Period(at, at), value, Interval(max(value - half, 0), min(value + half, 1)), False, None, 9))
    chart = series_chart(Series("hate", "prevalence", "items", tuple(made)), "hate", OCTOBER)
    assert len(chart.dots) == len(points)
    assert [dot.x for dot in chart.dots] == sorted(dot.x for dot in chart.dots)
    for dot in chart.dots:
        assert curves.x(0) <= dot.x <= curves.x(1)
        assert curves.y(1) - 0.1 <= dot.high_y <= dot.y + 0.1 <= dot.low_y + 0.2 <= curves.y(0) + 0.3


def test_maturity_chart_draws_a_line_for_each_period_and_the_dots_of_the_newest() -> None:
    def known(of: Period, value: float) -> Point:
        return Point(of, value, Interval(0.9 * value, 1.1 * value), False, None, 9)

    points = tuple(known(week(number), 0.1) for number in range(3))
    curves_of = tuple(
        Curve(week(number), tuple((age, known(week(number), 0.01 * age)) for age in ages))
        for number, ages in ((0, (1, 2, 7)), (1, (1, 2)))
    )
    chart = maturity_chart(Series("hate", "prevalence", "items", points, (), curves_of), "hate")
    assert [text for _, text in chart.across] == ["1 d", "2 d", "7 d", "now"]
    assert chart.line.count("M") == 2
    assert [dot.text.partition(":")[0] for dot in chart.dots] == [
        f"{week(1)}, after 1 d",
        f"{week(1)}, after 2 d",
        f"{week(1)}, now",
    ]
    assert [dot.x for dot in chart.dots] == [curves.x(place) for place in (0.125, 0.375, 0.875)]
    assert chart.dots[0].y > chart.dots[1].y > chart.dots[2].y  # upwards


def test_bar_chart_draws_heights_in_proportion() -> None:
    chart = bar_chart("Decisions", {date(2026, 10, 1): 150, date(2026, 10, 31): 75}, OCTOBER)
    first, last = chart.bars
    assert chart.up == ("0", "100", "200")
    assert first.height == pytest.approx(2 * last.height, abs=0.02)
    assert first.height == pytest.approx(0.75 * (curves.y(0) - curves.y(1)), abs=0.02)
    assert last.x + last.width <= curves.x(1)
    assert [short_count(value) for value in (0, 2.5, 1500, 2e7)] == ["0", "2.5", "1.5k", "20M"]


def test_prometheus_has_every_number_that_grafana_queries(tmp_path: Path, dashboard: Dashboard) -> None:
    write_prometheus(dashboard, tmp_path / "vigil.prom")
    families = list(text_string_to_metric_families((tmp_path / "vigil.prom").read_text(encoding="utf-8")))
    exported = {family.name for family in families if family.samples}
    grafana = json.loads((REPOSITORY / "deploy" / "grafana-monitor.json").read_text(encoding="utf-8"))
    queried = {
        name
        for panel in grafana["panels"]
        for target in panel.get("targets", [])
        for name in re.findall(r"\bvigil_monitor_\w+", target["expr"])
    }
    assert queried == exported
    labels = {family.name: {name for sample in family.samples for name in sample.labels} for family in families}
    for panel in grafana["panels"]:
        for target in panel.get("targets", []):
            (metric,) = re.findall(r"\bvigil_monitor_\w+", target["expr"])
            used = {*re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]), *re.findall(r"(\w+)=\"", target["expr"])}
            assert used <= labels[metric], (metric, used)
    assert len({panel["id"] for panel in grafana["panels"]}) == len(grafana["panels"])


def test_prometheus_values_are_the_newest_and_undefined_ones_absent(tmp_path: Path, dashboard: Dashboard) -> None:
    write_prometheus(dashboard, tmp_path / "vigil.prom")
    text = (tmp_path / "vigil.prom").read_text(encoding="utf-8")
    assert 'vigil_monitor_prevalence{label="hate",weight="items"} 0.0058\n' in text
    assert 'vigil_monitor_drift_alarms{kind="score"} 1.0\n' in text
    assert 'vigil_monitor_experiment_verdict{experiment="larger encoder",verdict="promote"} 1.0\n' in text
    assert 'vigil_monitor_decisions{action="remove"} 3.0\n' in text
    write_prometheus(replace(dashboard, agreement=None, load=(), drift=None), tmp_path / "less.prom")
    less = (tmp_path / "less.prom").read_text(encoding="utf-8")
    assert not re.search(r"^vigil_monitor_(agreement|reviews|review_minutes|drift)", less, re.MULTILINE)
