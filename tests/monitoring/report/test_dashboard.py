"""What the dashboard reads: the newest result of each period, slices of time, and the traffic's history."""

from dataclasses import asdict
from datetime import date
from pathlib import Path

import pytest

from vigil_data.errors import UserError
from vigil_monitoring.report import TrafficHistory, read_dashboard, read_history
from vigil_monitoring.report.dashboard import period_of
from vigil_monitoring.report.history import Change
from vigil_monitoring.results import Period, write_result
from vigil_monitoring.traffic import open_traffic

from .results import FIRST, PREVALENCE, domain, experiment_result, prevalence_result, week, write_results, write_weeks_of_traffic


def history(folder: Path) -> TrafficHistory:
    write_weeks_of_traffic(folder / "traffic.parquet")
    return read_history(open_traffic(folder / "traffic.parquet"))


def test_read_dashboard_orders_estimates_by_period(tmp_path: Path) -> None:
    write_results(tmp_path)
    found = read_dashboard(tmp_path)
    assert found.period == Period(FIRST, week(4).end)
    assert [(of.name, of.weight) for of in found.prevalence] == [(a, b) for a in PREVALENCE for b in ("items", "exposure")]
    hate = found.prevalence[0]
    assert [point.value for point in hate.points] == list(PREVALENCE["hate"])
    assert [point.period for point in hate.points] == [week(number) for number in range(5)]
    assert [point.final for point in hate.points] == [True] * 4 + [False]
    assert [round(value / 1.05, 9) for _, value in hate.truth] == list(PREVALENCE["hate"])
    assert {(of.name, of.metric) for of in found.metrics} >= {("any action", "precision"), ("remove", "recall")}
    assert [load.row.reviews for load in found.load] == [700] * 5
    assert found.other == ("sampling.json",)
    assert found.notes == ("exposure of 3 rows is unknown",)
    assert [experiment.name for _, experiment in found.experiments] == ["larger encoder"]


def test_read_dashboard_orders_maturity_curves_by_period_and_age(tmp_path: Path) -> None:
    write_results(tmp_path)
    hate, by_exposure = read_dashboard(tmp_path).prevalence[:2]
    assert [curve.period for curve in hate.curves] == [week(number) for number in range(5)]
    last = PREVALENCE["hate"][-1]
    assert [(age, point.value) for age, point in hate.curves[-1].steps] == [(1, last * 0.6), (2, last * 0.8), (7, last * 0.9)]
    assert by_exposure.curves == ()


def test_read_dashboard_takes_the_newest_result_of_a_period(tmp_path: Path) -> None:
    for name, value in (("b", 0.1), ("a", 0.2)):  # the later one has the earlier name
        write_result(tmp_path / f"{name}.json", "prevalence", week(0), asdict(prevalence_result({"hate": value})))
        text = (tmp_path / f"{name}.json").read_text(encoding="utf-8")
        created = {"b": "2026-11-01T00:00:00+00:00", "a": "2026-11-02T00:00:00+00:00"}[name]
        head, _, rest = text.partition('"created": "')
        (tmp_path / f"{name}.json").write_text(f'{head}"created": "{created}{rest[rest.index(chr(34)) :]}', encoding="utf-8")
    assert [point.value for point in read_dashboard(tmp_path).prevalence[0].points] == [0.2]


def test_read_dashboard_prefers_slices_of_time(tmp_path: Path) -> None:
    body = prevalence_result({"hate": 0.1})
    weeks = [
        body.rows[0].__class__("hate", "week", value, "items", 10.0, domain(share), None)
        for value, share in (("2026-W42", 0.3), ("2026-W41", 0.2))
    ]
    slices = [body.rows[0].__class__("hate", "language", "de", "items", 10.0, domain(0.9), None)]
    body = body.__class__(**{**{name: getattr(body, name) for name in body.__slots__}, "rows": (*body.rows, *weeks, *slices)})
    write_result(tmp_path / "a.json", "prevalence", Period(FIRST, week(1).end), asdict(body))
    hate = read_dashboard(tmp_path).prevalence[0]
    assert [(str(point.period), point.value) for point in hate.points] == [
        ("2026-10-05 to 2026-10-11", 0.2),
        ("2026-10-12 to 2026-10-18", 0.3),
    ]


@pytest.mark.parametrize(
    ("by", "value", "days"),
    [
        ("day", "2026-02-28", "2026-02-28"),
        ("week", "2026-W53", "2026-12-28 to 2027-01-03"),
        ("month", "2024-02", "2024-02-01 to 2024-02-29"),
        ("month", "2026-12", "2026-12-01 to 2026-12-31"),
        ("language", "de", "None"),
        ("week", "unknown", "None"),
    ],
)
def test_period_of(by: str, value: str, days: str) -> None:
    assert str(period_of(by, value)) == days


def test_read_history_counts_days_and_finds_changes(tmp_path: Path) -> None:
    found = history(tmp_path)
    assert found.days[0] == FIRST
    assert found.decisions == (20,) * 35
    assert {action: set(counts) for action, counts in found.by_action.items()} == {"allow": {12}, "label": {5}, "remove": {3}}
    assert set(found.reviews) == {1}
    assert [sum(found.errors), found.errors[4]] == [1, 1]
    assert found.changes == (
        Change(date(2026, 10, 19), "model", f"{'c' * 12} decides"),
        Change(date(2026, 10, 26), "threshold", "label of hate from 0.75"),
        Change(date(2026, 10, 26), "threshold", "remove of hate from 0.75"),
    )


def test_read_dashboard_of_traffic_alone(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    assert read_dashboard(tmp_path / "results", history(tmp_path)).prevalence == ()
    with pytest.raises(UserError, match=r"has no results to show; write some with --to .*, or add --traffic TRAFFIC"):
        read_dashboard(tmp_path / "results")


def test_read_dashboard_names_each_broken_result(tmp_path: Path) -> None:
    write_result(tmp_path / "a.json", "prevalence", week(0), {"rows": 1})
    write_result(tmp_path / "b.json", "experiment", week(0), {**asdict(experiment_result()), "verdict": "maybe"})
    with pytest.raises(UserError) as refused:
        read_dashboard(tmp_path)
    first, second = refused.value.lines
    assert first.startswith(f"{tmp_path / 'a.json'}: prevalence")
    assert second.startswith(f"{tmp_path / 'b.json'}: experiment.verdict")
    with pytest.raises(UserError, match="no such folder"):
        read_dashboard(tmp_path / "absent")
