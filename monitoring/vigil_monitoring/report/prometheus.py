"""The dashboard's numbers as Prometheus metrics, for the textfile collector of the node exporter.

``deploy/grafana-monitor.json`` is a Grafana dashboard over them.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from vigil_data.filesystem import write_file
from vigil_evaluation.stats.intervals import Interval
from vigil_monitoring.experiments.results import Verdict
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
    created = _gauge(registry, "result_timestamp_seconds", "Creation of the newest result, by kind", "kind")
    for kind, time in dashboard.created.items():
        created.labels(kind).set(time.timestamp())
    prevalence = _Estimated(registry, "prevalence", "Share of the decisions that violate the label", "label", "weight")
    for series in dashboard.prevalence:
        prevalence.set(series.last.value, series.last.interval, series.name, series.weight)
    metric = _Estimated(registry, "online_metric", "Online metric of an action, for any label, by items", "metric", "action")
    for series in dashboard.metrics:
        metric.set(series.last.value, series.last.interval, series.metric, series.name)
    _reviewers(registry, dashboard)
    _alarms(registry, dashboard)
    _traffic(registry, dashboard)
    return registry


def _reviewers(registry: CollectorRegistry, dashboard: Dashboard) -> None:
    reviews = _gauge(registry, "reviews_per_day", "Decisions a day that are sent to reviewers", "policy")
    minutes = _gauge(registry, "review_minutes_per_day", "Reviewers' minutes a day", "policy")
    for load in dashboard.load[-1:]:
        reviews.labels(load.policy).set(load.row.reviews_per_day)
        if load.row.minutes_per_day is not None:
            minutes.labels(load.policy).set(load.row.minutes_per_day)
    alpha = _Estimated(registry, "agreement_alpha", "Krippendorff's alpha of the reviewers", "label")
    for of in dashboard.agreement[1].labels if dashboard.agreement else ():
        alpha.set(of.alpha.value, of.alpha.interval, of.label)


def _alarms(registry: CollectorRegistry, dashboard: Dashboard) -> None:
    alarms = _gauge(registry, "drift_alarms", "Drift alarms of the newest comparison", "kind")
    for kind in dashboard.drift[1].kinds if dashboard.drift else ():
        alarms.labels(kind.kind).set(kind.alarms)
    verdict = _gauge(registry, "experiment_verdict", "1 for the experiment's verdict", "experiment", "verdict")
    difference = _Estimated(registry, "experiment_difference", "Challenger minus champion", "experiment", "metric")
    for _, experiment in dashboard.experiments:
        for name in get_args(Verdict):
            verdict.labels(experiment.name, name).set(name == experiment.verdict)
        for row in (*experiment.metrics, *experiment.guardrails):
            difference.set(row.difference, row.interval, experiment.name, row.title)


def _traffic(registry: CollectorRegistry, dashboard: Dashboard) -> None:
    decisions = _gauge(registry, "decisions", "Decisions of the last day of the traffic, by action", "action")
    changed = _gauge(
        registry, "last_change_timestamp_seconds", "Start of the last day of a new model, policy or threshold", "what"
    )
    if dashboard.history is not None:
        for action, counts in dashboard.history.by_action.items():
            decisions.labels(action).set(counts[-1])
        for change in dashboard.history.changes:
            changed.labels(change.what).set(datetime(*change.day.timetuple()[:3], tzinfo=UTC).timestamp())


def _gauge(registry: CollectorRegistry, name: str, description: str, *labels: str) -> Gauge:
    return Gauge(PREFIX + name, description, labels, registry=registry)


class _Estimated:
    """Three gauges: an estimate, and the ends of its interval as NAME_low and NAME_high."""

    def __init__(self, registry: CollectorRegistry, name: str, description: str, *labels: str) -> None:
        self._gauges = (
            _gauge(registry, name, description, *labels),
            _gauge(registry, f"{name}_low", f"{description}: lower end of the interval", *labels),
            _gauge(registry, f"{name}_high", f"{description}: upper end of the interval", *labels),
        )

    def set(self, value: float | None, interval: Interval | None, *labels: str) -> None:
        """Set what is defined."""
        for gauge, number in zip(self._gauges, (value, *(interval or (None, None))), strict=True):
            if number is not None:
                gauge.labels(*labels).set(number)
