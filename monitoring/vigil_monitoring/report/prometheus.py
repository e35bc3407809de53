"""The dashboard's numbers as Prometheus metrics, for the textfile collector of the node exporter.

``deploy/grafana-monitor.json`` is a Grafana dashboard over them.
"""

from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from vigil_data.filesystem import write_file
from vigil_evaluation.stats.intervals import Interval
from vigil_monitoring.report.dashboard import Dashboard

PREFIX = "vigil_monitor_"


def write_prometheus(dashboard: Dashboard, to: Path) -> None:
    """Write the newest numbers in the text format, atomically.

    Args:
        dashboard: what was read.
        to: the file; the textfile collector reads files that end in ``.prom``.

    Raises:
        Failure: if it cannot be written.
    """
    write_file(to, generate_latest(make_registry(dashboard)))


def make_registry(dashboard: Dashboard) -> CollectorRegistry:
    """Return the newest numbers as gauges; a value that is undefined is absent."""
    registry = CollectorRegistry()

    def gauge(name: str, description: str, *labels: str) -> Gauge:
        return Gauge(PREFIX + name, description, labels, registry=registry)

    def estimated(name: str, description: str, *labels: str) -> "_Estimated":
        return _Estimated(
            gauge(name, description, *labels),
            gauge(f"{name}_low", f"{description}: lower end of the interval", *labels),
            gauge(f"{name}_high", f"{description}: upper end of the interval", *labels),
        )

    created = gauge("result_timestamp_seconds", "Creation of the newest result, by kind", "kind")
    for kind, time in dashboard.created.items():
        created.labels(kind).set(time.timestamp())
    prevalence = estimated("prevalence", "Share of the decisions that violate the label", "label", "weight")
    for series in dashboard.prevalence:
        prevalence.set(series.last.value, series.last.interval, series.name, series.weight)
    metric = estimated("online_metric", "Online metric of an action, for any label, by items", "metric", "action")
    for series in dashboard.metrics:
        metric.set(series.last.value, series.last.interval, series.metric, series.name)
    reviews = gauge("reviews_per_day", "Decisions a day that are sent to reviewers")
    minutes = gauge("review_minutes_per_day", "Reviewers' minutes a day")
    if dashboard.load:
        last = dashboard.load[-1].row
        reviews.set(last.reviews_per_day)
        if last.minutes_per_day is not None:
            minutes.set(last.minutes_per_day)
    alpha = estimated("agreement_alpha", "Krippendorff's alpha of the reviewers", "label")
    for of in dashboard.agreement[1].labels if dashboard.agreement else ():
        alpha.set(of.alpha.value, of.alpha.interval, of.label)
    alarms = gauge("drift_alarms", "Drift alarms of the newest comparison", "kind")
    for kind_results in dashboard.drift[1].kinds if dashboard.drift else ():
        alarms.labels(kind_results.kind).set(kind_results.alarms)
    verdict = gauge("experiment_verdict", "1 for the experiment's verdict", "experiment", "verdict")
    difference = estimated("experiment_difference", "Challenger minus champion", "experiment", "metric")
    for _, experiment in dashboard.experiments:
        for name in ("promote", "continue", "reject"):
            verdict.labels(experiment.name, name).set(name == experiment.verdict)
        for row in (*experiment.metrics, *experiment.guardrails):
            difference.set(row.difference, row.interval, experiment.name, row.title)
    decisions = gauge("decisions", "Decisions of the last day of the traffic, by action", "action")
    changed = gauge("last_change_timestamp_seconds", "Start of the last day with a new model, policy or threshold", "what")
    if dashboard.history is not None:
        for action, counts in dashboard.history.by_action.items():
            decisions.labels(action).set(counts[-1])
        for change in dashboard.history.changes:
            changed.labels(change.what).set(datetime(*change.day.timetuple()[:3], tzinfo=UTC).timestamp())
    return registry


class _Estimated:
    """Three gauges: an estimate and the ends of its interval."""

    def __init__(self, value: Gauge, low: Gauge, high: Gauge) -> None:
        self._gauges = value, low, high

    def set(self, value: float | None, interval: Interval | None, *labels: str) -> None:
        for gauge, number in zip(self._gauges, (value, *(interval or (None, None))), strict=True):
            if number is not None:
                gauge.labels(*labels).set(number)
