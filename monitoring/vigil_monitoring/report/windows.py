"""The dashboard's numbers by window of time, for a service that tracks metrics: names, numbers and ids, never content.

A window is named by its last day. Windows that are not over, and estimates for which answers are still expected, are left out: a
tracking service keeps the first value.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import date, timedelta

from vigil_monitoring.drift.results import DriftResults
from vigil_monitoring.report.dashboard import Dashboard, Series
from vigil_monitoring.report.history import TrafficHistory

ESTIMATE_COLUMNS = ("first", "last", "metric", "name", "weight", "value", "low", "high", "biased", "final", "reviewed")
ALARM_COLUMNS = ("kind", "slice", "label", "subject", "before", "now", "since", "alarm", "p_value", "examples")

_PERSONAL = ("author", "thread")
"""Columns of slices whose values name people, and are withheld."""


def window_values(dashboard: Dashboard, today: date) -> dict[date, dict[str, float]]:
    """Return the last day of each window to its values by name.

    Args:
        dashboard: what was read.
        today: the current day (UTC), which is not over.
    """
    found: dict[date, dict[str, float]] = defaultdict(dict)
    for series in (*dashboard.prevalence, *dashboard.metrics):
        for day, name, value in _estimates(series):
            found[day][name] = value
    for source in (
        _volumes(dashboard.history) if dashboard.history is not None else (),
        _alarms(dashboard.drift[1]) if dashboard.drift is not None else (),
    ):
        for day, name, value in source:
            found[day][name] = value
    return {day: found[day] for day in sorted(found) if day < today}


def estimate_rows(dashboard: Dashboard) -> list[list[str | float | None]]:
    """Return all estimates, the newest of each window, in the order of :data:`ESTIMATE_COLUMNS`."""
    return [
        [
            *(str(point.period.start), str(point.period.end), series.metric, series.name, series.weight, point.value),
            *((None, None) if point.interval is None else (point.interval.low, point.interval.high)),
            *(point.biased, point.final, point.reviewed),
        ]
        for series in (*dashboard.prevalence, *dashboard.metrics)
        for point in series.points
    ]


def alarm_rows(dashboard: Dashboard) -> list[list[str | float | None]]:
    """Return the alarms of the newest comparison with ids of examples, in the order of :data:`ALARM_COLUMNS`."""
    alarms = dashboard.drift[1].alarms if dashboard.drift is not None else []
    return [
        [
            *(of.kind, _shown_slice(of.slice), of.label, of.subject, of.before, of.now, of.since, of.alarm, of.p_value),
            " ".join(of.examples),
        ]
        for of in alarms
    ]


def _estimates(series: Series) -> Iterator[tuple[date, str, float]]:
    name = f"{series.metric}{'' if series.weight == 'items' else f'_by_{series.weight}'}/{series.name}"
    for point in series.points:
        if point.value is not None and point.final is not False:
            yield point.period.end, name, point.value
            if point.interval is not None:
                yield point.period.end, f"{name}_low", point.interval.low
                yield point.period.end, f"{name}_high", point.interval.high


def _volumes(history: TrafficHistory) -> Iterator[tuple[date, str, float]]:
    counts = {"decisions": history.decisions, "reviews": history.reviews, "errors": history.errors}
    counts |= {f"decisions/{action}": of for action, of in history.by_action.items()}
    for name, of in counts.items():
        for day, count in zip(history.days, of, strict=True):
            yield day, f"volume/{name}", count


def _alarms(drift: DriftResults) -> Iterator[tuple[date, str, float]]:
    """Yield the number of alarms that each window has raised first, by kind."""
    length, last = timedelta(days=6 if drift.window == "week" else 0), date.fromisoformat(drift.last)
    raised = Counter((alarm.kind, date.fromisoformat(alarm.alarm)) for alarm in drift.alarms)
    for first in drift.windows:
        day = min(date.fromisoformat(first) + length, last)
        for of in drift.kinds:
            yield day, f"drift_alarms/{of.kind}", raised[of.kind, day]


def _shown_slice(name: str) -> str:
    column = name.partition("=")[0]
    return f"{column}=(withheld)" if column in _PERSONAL else name
