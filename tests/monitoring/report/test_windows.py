"""The dashboard's numbers by window: their names and days, what is left out, and that nobody is named."""

from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest

from vigil_monitoring.drift.results import DriftAlarm
from vigil_monitoring.report import read_dashboard, read_history
from vigil_monitoring.report.dashboard import Dashboard
from vigil_monitoring.report.windows import ALARM_COLUMNS, ESTIMATE_COLUMNS, alarm_rows, estimate_rows, window_values
from vigil_monitoring.traffic import open_traffic

from .results import PREVALENCE, drift_result, week, write_results, write_weeks_of_traffic

LATER = date(2027, 1, 1)


@pytest.fixture
def dashboard(tmp_path: Path) -> Dashboard:
    write_results(tmp_path / "results")
    write_weeks_of_traffic(tmp_path / "traffic.parquet")
    return read_dashboard(tmp_path / "results", read_history(open_traffic(tmp_path / "traffic.parquet")))


def test_window_values_have_every_final_estimate_on_the_last_day_of_its_period(dashboard: Dashboard) -> None:
    found = window_values(dashboard, LATER)
    hate = {day: values["prevalence/hate"] for day, values in found.items() if "prevalence/hate" in values}
    assert hate == {week(number).end: PREVALENCE["hate"][number] for number in range(4)}, "the fifth is not final"
    first = found[week(0).end]
    assert first["prevalence_by_exposure/hate"] == pytest.approx(1.4 * PREVALENCE["hate"][0])
    assert first["prevalence/hate_low"] < first["prevalence/hate"] < first["prevalence/hate_high"]
    assert {"precision/remove", "recall/any action", "false_positive_rate/any action"} <= first.keys()
    assert list(found) == sorted(found)


def test_window_values_have_the_volumes_of_each_day_that_is_over(dashboard: Dashboard) -> None:
    history = dashboard.history
    assert history is not None
    found = window_values(dashboard, history.days[-1])
    assert max(found) < history.days[-1]
    day = history.days[0]
    assert found[day]["volume/decisions"] == history.decisions[0]
    assert sum(value for name, value in found[day].items() if name.startswith("volume/decisions/")) == history.decisions[0]


@pytest.mark.parametrize(("window", "ends"), [("day", [0, 1]), ("week", [6, 10])])
def test_window_values_count_the_alarms_that_a_window_raised(dashboard: Dashboard, window: str, ends: list[int]) -> None:
    first = date(2026, 10, 26)
    starts = [first, first + timedelta(days=7 if window == "week" else 1)]
    last = first + timedelta(days=ends[1])
    [alarm] = drift_result().alarms
    drift = replace(
        drift_result(),
        window=window,
        windows=[str(day) for day in starts],
        last=str(last),
        alarms=[replace(alarm, alarm=str(last)), replace(alarm, alarm=str(last), subject="another")],
    )
    found = window_values(replace(dashboard, drift=(week(0), drift)), LATER)
    counts = {day: values["drift_alarms/score"] for day, values in found.items() if "drift_alarms/score" in values}
    assert counts == {first + timedelta(days=ends[0]): 0, last: 2}


def test_rows_of_tables_have_the_numbers_and_ids_and_withhold_authors(dashboard: Dashboard) -> None:
    rows = estimate_rows(dashboard)
    hate = [dict(zip(ESTIMATE_COLUMNS, row, strict=True)) for row in rows if row[2:5] == ["prevalence", "hate", "items"]]
    assert [of["value"] for of in hate] == list(PREVALENCE["hate"])
    assert hate[-1]["final"] is False
    alarm: DriftAlarm = drift_result().alarms[0]
    drift = replace(drift_result(), alarms=[replace(alarm, examples=["a", "b"]), replace(alarm, slice="author=ana")])
    shown = [dict(zip(ALARM_COLUMNS, row, strict=True)) for row in alarm_rows(replace(dashboard, drift=(week(0), drift)))]
    assert [(of["slice"], of["examples"]) for of in shown] == [("language=de", "a b"), ("author=(withheld)", "a")]
