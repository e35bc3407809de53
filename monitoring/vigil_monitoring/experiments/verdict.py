"""Verdict of an experiment: valid at every look, whenever the experiment is stopped.

- Promote: every metric was shown to meet its goal. Each test has half of alpha; since all must succeed, that needs no correction
  (intersection-union test: Berger 1982).
- Reject: any metric, or any guardrail in any slice, was shown to fail. The p-values are corrected by Holm's method over all of
  them, with the other half of alpha; p-values that are valid at every look stay so (Johari, Pekelis and Walsh 2015, section 6).
- Evidence adds up: what was shown at an earlier look stays shown. A failure outweighs goals that are met, and an estimate that is
  beyond its margin now holds a promotion.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.stats.intervals import Interval
from vigil_evaluation.stats.multiple_testing import holm
from vigil_monitoring.experiments.cluster_sums import Looks
from vigil_monitoring.experiments.results import LookResult, MetricResult, Verdict
from vigil_monitoring.experiments.spec import DecisiveMetric, Guardrail
from vigil_monitoring.sequential.normal_mixture import critical_values, log_e_values, prior_ratio

Floats = NDArray[np.float64]


class Evidence(NamedTuple):
    """Evidence on one goal at K looks.

    Attributes:
        p_met_K: p-value of "the goal is not met", of all looks so far.
        p_failed_K: p-value of "the goal is met", of all looks so far, not corrected.
        low_K: lower end of the confidence sequence of the difference, ``-inf`` where nothing is excluded.
        high_K: upper end.
        usable_K: whether the look counts: defined, with enough rows.
    """

    p_met_K: Floats
    p_failed_K: Floats
    low_K: Floats
    high_K: Floats
    usable_K: NDArray[np.bool_]


class Goal(NamedTuple):
    """A goal or guardrail: its result, and the evidence on it."""

    result: MetricResult
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Decided:
    """A verdict.

    Attributes:
        verdict: ``promote``, ``continue`` or ``reject``.
        reason: why, in one sentence.
        day: last day of the look that decided; ``None`` for ``continue``.
        metrics: metrics, with the days at which their goals were met or failed, and corrected p-values.
        guardrails: guardrails in each slice.
    """

    verdict: Verdict
    reason: str
    day: str | None
    metrics: tuple[MetricResult, ...]
    guardrails: tuple[MetricResult, ...]


def evidence(looks: Looks, *, lower: bool, threshold: float, alpha: float, horizon_clusters: float, enough: int) -> Evidence:
    """Return the evidence on a goal at each look.

    The standard error is at least that of one row: arms that never differed yet are no proof that they never will.

    Args:
        looks: the differences.
        lower: whether lower values are better.
        threshold: gain (in the better direction) that must be exceeded.
        alpha: error rate of each side.
        horizon_clusters: number of clusters at which the test is most powerful.
        enough: fewest rows of each arm.
    """
    usable_K = np.isfinite(looks.errors_K) & (looks.rows_KA >= enough).all(axis=-1) & (looks.clusters_K > 1)
    sign = -1.0 if lower else 1.0
    errors = np.where(usable_K, np.maximum(looks.errors_K, 1 / np.maximum(looks.rows_KA.min(axis=-1), 1)), 1.0)
    excess_K = np.where(usable_K, (sign * looks.difference_K - threshold) / errors, 0.0)
    ratio_K = prior_ratio(np.maximum(looks.clusters_K, 1), horizon_clusters, alpha, one_sided=True)
    df_K = np.maximum(looks.clusters_K - 1, 1)
    p_met, p_failed = (
        np.exp(-np.maximum.accumulate(np.where(usable_K, np.maximum(logs, 0.0), 0.0), axis=-1))
        for logs in (log_e_values(side * excess_K, ratio_K, df_K, one_sided=True) for side in (1, -1))
    )
    radius = np.where(usable_K, errors * critical_values(ratio_K, alpha, df_K, one_sided=True), np.inf)
    difference = np.where(usable_K, looks.difference_K, 0.0)
    return Evidence(p_met, p_failed, difference - radius, difference + radius, usable_K)


def metric_result(
    spec: DecisiveMetric | Guardrail, looks: Looks, found: Evidence, days: Sequence[str], **more: Any
) -> MetricResult:
    """Return the result of one goal, before the correction for the number of goals.

    Args:
        spec: the goal.
        looks: the differences.
        found: the evidence.
        days: last day of each look.
        more: other fields of the result.
    """
    last = len(days) - 1
    series = tuple(
        LookResult(day, _number(looks.difference_K[k]) if found.usable_K[k] else None, _interval(found.low_K[k], found.high_K[k]))
        for k, day in enumerate(days)
    )
    return MetricResult(
        name=spec.name,
        goal=spec.goal if isinstance(spec, DecisiveMetric) else "guardrail",
        margin=spec.margin,
        better="lower" if spec.lower else "higher",
        champion=_number(looks.champion_K[last]),
        challenger=_number(looks.challenger_K[last]),
        difference=_number(looks.difference_K[last]),
        interval=series[last].interval,
        rows=(int(looks.rows_KA[last, 0]), int(looks.rows_KA[last, 1])),
        met=None,
        failed=None,
        p_met=float(found.p_met_K[last]),
        p_failed=float(found.p_failed_K[last]),
        looks=series,
        **more,
    )


def decide(
    metrics: Sequence[Goal],
    guardrails: Sequence[Goal],
    days: Sequence[str],
    *,
    alpha: float,
    horizon_days: int,
    problems: Sequence[str] = (),
) -> Decided:
    """Return the verdict.

    Args:
        metrics: metrics of the verdict, at least one.
        guardrails: guardrails in each slice.
        days: last day of each of the K looks.
        alpha: of the experiment.
        horizon_days: planned number of days.
        problems: what makes the arms not comparable; the verdict is ``continue`` then.
    """
    failed_GK = np.stack([of.evidence.p_failed_K for of in (*metrics, *guardrails)])
    corrected_GK = np.stack([holm(p_G) for p_G in failed_GK.T], axis=1)
    results = [
        replace(of.result, failed=_first_day(p_K <= alpha / 2, days), p_failed=float(p_K[-1]))
        for of, p_K in zip((*metrics, *guardrails), corrected_GK, strict=True)
    ]
    shown = [
        replace(result, met=_first_day(of.evidence.p_met_K <= alpha / 2, days))
        for of, result in zip(metrics, results, strict=False)
    ]
    limits = results[len(metrics) :]
    verdict, reason, day = _verdict(shown, limits, days, horizon_days, problems)
    return Decided(verdict, reason, day, tuple(shown), tuple(limits))


def _verdict(
    metrics: Sequence[MetricResult],
    guardrails: Sequence[MetricResult],
    days: Sequence[str],
    horizon: int,
    problems: Sequence[str],
) -> tuple[Verdict, str, str | None]:
    """Return verdict, reason and the day that decided."""
    if problems:
        return "continue", f"no verdict, since the arms are not comparable: {'; '.join(problems)}", None
    failures = sorted((of for of in (*metrics, *guardrails) if of.failed), key=lambda of: (str(of.failed), of.p_failed))
    if failures:
        worst = failures[0]
        more = f"; {len(failures) - 1} more failed" if len(failures) > 1 else ""
        return "reject", f"{worst.title} {_change(worst)} was shown {_failure(worst)} on {worst.failed}{more}", worst.failed
    unmet = [of for of in metrics if of.met is None]
    beyond = [of for of in (*metrics, *guardrails) if _gain(of) < (of.margin if of.goal == "superior" else -of.margin)]
    if not unmet and not beyond:
        day = max(str(of.met) for of in metrics)
        goals = "; ".join(f"{of.title} {_change(of)}, shown {_success(of)}" for of in metrics)
        return "promote", f"every goal was met by {day}: {goals}", day
    if unmet:
        waits = f"{unmet[0].title} {_change(unmet[0])} is not yet shown {_success(unmet[0])}"
    else:
        waits = f"every goal was met, but {beyond[0].title} {_change(beyond[0])} is beyond its margin of {beyond[0].margin:g}"
    if len(days) >= horizon:
        return "continue", f"{waits}, and the horizon of {horizon} days has passed: keep the champion, or run on", None
    return "continue", f"{waits}, after {len(days)} of {horizon} days", None


def _gain(of: MetricResult) -> float:
    return 0.0 if of.difference is None else of.difference * (-1 if of.better == "lower" else 1)


def _change(of: MetricResult) -> str:
    if of.difference is None:
        return "(undefined)"
    interval = "" if of.interval is None else f" (interval {of.interval.low:+.4f} to {of.interval.high:+.4f})"
    return f"{of.difference:+.4f}{interval}"


def _success(of: MetricResult) -> str:
    if of.goal == "superior":
        return "to be better" + (f" by more than {of.margin:g}" if of.margin else "")
    return f"to be worse by at most {of.margin:g}"


def _failure(of: MetricResult) -> str:
    if of.goal == "superior":
        return f"not to be better by more than {of.margin:g}" if of.margin else "to be worse"
    return f"to be worse by more than {of.margin:g}"


def _first_day(events_K: NDArray[np.bool_], days: Sequence[str]) -> str | None:
    return days[int(events_K.argmax())] if events_K.any() else None


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _interval(low: float, high: float) -> Interval | None:
    return Interval(float(low), float(high)) if np.isfinite(low) and np.isfinite(high) else None
