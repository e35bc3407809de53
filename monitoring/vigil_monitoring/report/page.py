"""The dashboard as one self-contained page."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vigil_data.filesystem import StrPath
from vigil_evaluation.report import curves
from vigil_evaluation.report.rendering import format_percent, render_page
from vigil_monitoring.estimates.online_metrics import ANY_ACTION
from vigil_monitoring.report.charts import Chart, bar_chart, maturity_chart, series_chart
from vigil_monitoring.report.dashboard import Dashboard, Series

PAGE = Path(__file__).parent / "page.html.jinja"
METRICS = {"precision": "Precision", "recall": "Recall", "false_positive_rate": "False-positive rate"}
"""Online metrics in the order of the page."""


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that stands out, and the section that shows it."""

    section: str
    topic: str
    text: str


def write_page(dashboard: Dashboard, to: StrPath) -> None:
    """Write the page.

    Args:
        dashboard: what it shows.
        to: HTML file.

    Raises:
        Failure: if it cannot be written.
    """
    changes = dashboard.history.changes if dashboard.history else ()
    render_page(
        PAGE,
        to,
        d=dashboard,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        remarks=remarks(dashboard),
        prevalence_charts=[_chart(series, series.name, dashboard) for series in dashboard.prevalence if series.weight == "items"],
        prevalence_curves=[maturity_chart(series, series.name) for series in dashboard.prevalence if series.curves],
        metric_curves=[
            maturity_chart(series, f"{METRICS[series.metric]} of {action_name(series.name)}")
            for series in sorted(dashboard.metrics, key=_metric_order)
            if series.curves and series.metric != "false_positive_rate"
        ],
        metric_charts=[
            _chart(series, f"{METRICS[series.metric]} of {action_name(series.name)}", dashboard)
            for series in sorted(dashboard.metrics, key=_metric_order)
            if series.metric != "false_positive_rate"
        ],
        metric_series=sorted(dashboard.metrics, key=_metric_order),
        metric_names=METRICS,
        volume_charts=_volumes(dashboard),
        action_name=action_name,
        changes=changes,
        curves=curves,
    )


def action_name(action: str) -> str:
    """Return an action for people."""
    return "the policy" if action == ANY_ACTION else action.replace("_", " ")


def remarks(dashboard: Dashboard) -> list[Remark]:
    """Return what stands out."""
    found = []
    if dashboard.drift is not None:
        found += [Remark("drift", f"Drift of {alarm.kind}", alarm.sentence) for alarm in dashboard.drift[1].alarms[:5]]
        if len(dashboard.drift[1].alarms) > 5:
            found.append(Remark("drift", "Drift", f"{len(dashboard.drift[1].alarms) - 5} further alarms."))
    for _, experiment in dashboard.experiments:
        if experiment.problems:
            found.append(Remark("experiments", experiment.name, experiment.problems[0]))
        elif experiment.verdict != "continue":
            found.append(Remark("experiments", experiment.name, f"verdict {experiment.verdict}: {experiment.reason}"))
    if any(point.biased for series in (*dashboard.prevalence, *dashboard.metrics) for point in series.points):
        found.append(
            Remark("prevalence", "Biased estimates", "some reviews are no probability sample; such estimates are hollow.")
        )
    for series in dashboard.prevalence:
        if series.weight == "items" and (rise := _rise(series)) is not None:
            found.append(Remark("prevalence", series.name, rise))
    return found


def _rise(series: Series) -> str | None:
    """Return that the last interval lies above or below the one before it, if it does."""
    known = [point for point in series.points if point.interval is not None and point.value is not None]
    if len(known) < 2:
        return None
    before, last = known[-2], known[-1]
    assert before.interval and last.interval and before.value is not None and last.value is not None  # noqa: PT018 (for types)
    if last.interval.low > before.interval.high or last.interval.high < before.interval.low:
        direction = "rose" if last.value > before.value else "fell"
        values = f"from {format_percent(before.value)} to {format_percent(last.value)}"
        return f"prevalence {direction} {values}; the two intervals do not overlap."
    return None


def _metric_order(series: Series) -> tuple[bool, str, int]:
    return series.name != ANY_ACTION, series.name, list(METRICS).index(series.metric)


def _chart(series: Series, title: str, dashboard: Dashboard) -> Chart:
    return series_chart(series, title, dashboard.period, dashboard.history.changes if dashboard.history else ())


def _volumes(dashboard: Dashboard) -> list[Chart]:
    """Return a chart of all decisions, and one of each action that is not taken for most of them."""
    history = dashboard.history
    if history is None:
        return []
    charts = [("Decisions", history.decisions)]
    charts += [(action_name(action), counts) for action, counts in history.by_action.items() if action not in ("allow", "(none)")]
    charts += [
        (name, counts) for name, counts in (("sent to review", history.reviews), ("failed", history.errors)) if any(counts)
    ]
    return [
        bar_chart(title, dict(zip(history.days, counts, strict=True)), dashboard.period, history.changes)
        for title, counts in charts
    ]
