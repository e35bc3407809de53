"""What the dashboard shows: the result files of a folder, the newest of each period, and what the traffic itself says."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from vigil_data.errors import UserError
from vigil_evaluation.stats.intervals import Interval
from vigil_monitoring.agreement.summary import AgreementResult
from vigil_monitoring.drift.results import DriftResults
from vigil_monitoring.estimates.label_answers import ANY
from vigil_monitoring.estimates.online_metrics import LoadRow, MetricsResult
from vigil_monitoring.estimates.prevalence import PrevalenceResult
from vigil_monitoring.experiments.results import ExperimentResult
from vigil_monitoring.report.history import TrafficHistory
from vigil_monitoring.report.truth import KIND as TRUTH
from vigil_monitoring.report.truth import TruthResult
from vigil_monitoring.results import Period, Result, read_results

KINDS = {
    "prevalence": PrevalenceResult,
    "metrics": MetricsResult,
    "agreement": AgreementResult,
    "drift": DriftResults,
    "experiment": ExperimentResult,
    TRUTH: TruthResult,
}
"""Kind of a result file to the type of its body."""

Truth = Mapping[tuple[str, str], tuple[tuple[Period, float], ...]]
"""True values by metric and name of a :class:`Series`."""

Body = TypeVar("Body")


@dataclass(frozen=True, slots=True)
class Point:
    """An estimate of a period.

    Attributes:
        period: days of the estimate.
        value: the share; ``None`` where it is undefined.
        interval: its interval.
        biased: whether the reviews are no probability sample.
        final: whether nearly all expected answers are there; ``None`` if unknown.
        reviewed: reviewed rows behind it.
    """

    period: Period
    value: float | None
    interval: Interval | None
    biased: bool
    final: bool | None
    reviewed: int


@dataclass(frozen=True, slots=True)
class Curve:
    """Estimates of one period as they were known when all its decisions had an age.

    Attributes:
        period: the period.
        steps: age in days and estimate, from the youngest.
    """

    period: Period
    steps: tuple[tuple[float, Point], ...]


@dataclass(frozen=True, slots=True)
class Series:
    """Estimates of one quantity over time, in the order of their periods.

    Attributes:
        name: the label; of an online metric, its action.
        metric: ``prevalence``, ``precision``, ``recall`` or ``false_positive_rate``.
        weight: ``items`` or ``exposure``.
        points: the estimates.
        truth: true values of periods, of simulated traffic; empty where unknown.
        curves: of periods whose answers came late, as they were known at each age; of shares by items.
    """

    name: str
    metric: str
    weight: str
    points: tuple[Point, ...]
    truth: tuple[tuple[Period, float], ...] = ()
    curves: tuple[Curve, ...] = ()

    @property
    def last(self) -> Point:
        """The newest estimate."""
        return self.points[-1]


@dataclass(frozen=True, slots=True)
class Load:
    """Reviews that the policy asks for, in a period.

    Attributes:
        period: the period.
        policy: names and versions of the policies that decided.
        row: the numbers.
    """

    period: Period
    policy: str
    row: LoadRow


@dataclass(frozen=True, slots=True)
class Dashboard:
    """Everything on the page.

    Attributes:
        folder: where the results are.
        period: days of all results and the traffic.
        prevalence: by label and weight.
        metrics: of each action, by items, for any label.
        load: reviewers' load by period.
        agreement: the newest agreement, with its period; ``None`` without.
        drift: the newest comparison, with its period; ``None`` without.
        experiments: the newest result of each experiment, with its period.
        history: volumes and changes; ``None`` without traffic.
        created: kind to the time of its newest result.
        other: names of result files of other kinds.
        notes: notes of the newest results.
    """

    folder: Path
    period: Period
    prevalence: tuple[Series, ...]
    metrics: tuple[Series, ...]
    load: tuple[Load, ...]
    agreement: tuple[Period, AgreementResult] | None
    drift: tuple[Period, DriftResults] | None
    experiments: tuple[tuple[Period, ExperimentResult], ...]
    history: TrafficHistory | None
    created: Mapping[str, datetime]
    other: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())


def read_dashboard(folder: Path, history: TrafficHistory | None = None) -> Dashboard:
    """Read the results of a folder.

    Of results of the same kind and period (for experiments: of the same name), the newest counts.

    Args:
        folder: result files, as the commands of `vigil monitor` write them with ``--to``.
        history: volumes and changes of the traffic.

    Raises:
        UserError: one line for each file that cannot be read; or if there is nothing to show.
    """
    results = read_results(folder)
    read: dict[str, list[tuple[Result, object]]] = {kind: [] for kind in KINDS}
    mistakes: list[str] = []
    for result in results:
        if result.kind in KINDS:
            try:
                read[result.kind].append((result, result.read(KINDS[result.kind])))
            except UserError as error:
                mistakes += error.lines
    if mistakes:
        raise UserError(*mistakes)
    if not any(read.values()) and history is None:
        raise UserError(f"{folder}: has no results to show; write some with --to {folder}/NAME.json, or add --traffic TRAFFIC")
    prevalence = _newest(read["prevalence"], PrevalenceResult)
    metrics = _newest(read["metrics"], MetricsResult)
    agreement, drift = _newest(read["agreement"], AgreementResult), _newest(read["drift"], DriftResults)
    experiments = {body.name: (period, body) for period, body in _newest(read["experiment"], ExperimentResult)}
    truth = _truth(_newest(read[TRUTH], TruthResult))
    shown = [of for of in results if of.kind in KINDS]
    days = [day for of in shown for day in (of.period.start, of.period.end)] + ([*history.days] if history else [])
    return Dashboard(
        folder=folder,
        period=Period(min(days), max(days)),
        prevalence=tuple(_prevalence(prevalence, truth)),
        metrics=tuple(_metrics(metrics, truth)),
        load=tuple(Load(period, ", ".join(body.policies), row) for period, body in metrics for row in body.load if not row.by),
        agreement=agreement[-1] if agreement else None,
        drift=drift[-1] if drift else None,
        experiments=tuple(experiments[name] for name in sorted(experiments)),
        history=history,
        created={of.kind: of.created for of in sorted(shown, key=lambda of: of.created)},
        other=tuple(of.file.name for of in results if of.kind not in KINDS),
        notes=tuple(dict.fromkeys(note for body in (prevalence[-1:], metrics[-1:]) for _, of in body for note in of.notes)),
    )


def _newest(read: Iterable[tuple[Result, object]], kind: type[Body]) -> list[tuple[Period, Body]]:
    """Return the newest result of each period (of experiments, of each name and period), in the order of the periods' ends."""
    found: dict[tuple[Period, str], tuple[datetime, Body]] = {}
    for result, body in read:
        assert isinstance(body, kind)
        key = result.period, getattr(body, "name", "")
        if key not in found or found[key][0] <= result.created:
            found[key] = result.created, body
    ordered = sorted(found.items(), key=lambda item: (item[0][0].end, item[0][0].start, item[1][0]))
    return [(period, body) for (period, _), (_, body) in ordered]


def period_of(by: str, value: str) -> Period | None:
    """Return the days of a slice of time such as ``2026-W44``; ``None`` for other slices."""
    try:
        if by == "day":
            day = date.fromisoformat(value)
            return Period(day, day)
        if by == "week":
            monday = datetime.strptime(f"{value}-1", "%G-W%V-%u").date()
            return Period(monday, monday + timedelta(days=6))
        if by == "month":
            first = date.fromisoformat(f"{value}-01")
            return Period(first, (first + timedelta(days=31)).replace(day=1) - timedelta(days=1))
    except ValueError:
        return None
    return None


def _truth(results: Sequence[tuple[Period, TruthResult]]) -> Truth:
    found: dict[tuple[str, str], list[tuple[Period, float]]] = {}
    for period, body in results:
        for row in body.rows:
            found.setdefault((row.metric, row.name), []).append((period, row.value))
    return {quantity: tuple(values) for quantity, values in found.items()}


def _prevalence(results: Sequence[tuple[Period, PrevalenceResult]], truth: Truth) -> Iterable[Series]:
    keys = dict.fromkeys((row.label, row.weight) for _, body in results for row in body.rows)
    for label, weight in keys:
        rows = [
            (period, row, row.found.estimate)
            for period, body in results
            for row in body.rows
            if (row.label, row.weight) == (label, weight)
        ]
        points = [
            (row.by, Point(of, estimate.value, estimate.interval, estimate.biased, row.final, estimate.reviewed))
            for period, row, estimate in rows
            if (of := period if not row.by else period_of(row.by, row.value)) is not None
        ]
        if weight != "items":
            yield Series(label, "prevalence", weight, _finest(points))
            continue
        shown, known = _finest(points), truth.get(("prevalence", label), ())
        yield Series(label, "prevalence", weight, shown, known, _curves(results, "prevalence", label, shown))


def _metrics(results: Sequence[tuple[Period, MetricsResult]], truth: Truth) -> Iterable[Series]:
    rows = [
        (period, row, row.found.estimate)
        for period, body in results
        for row in body.rows
        if row.label == ANY and row.weight == "items"
    ]
    for action, metric in dict.fromkeys((row.action, row.metric) for _, row, _ in rows):
        points = [
            (row.by, Point(of, estimate.value, estimate.interval, estimate.biased, None, estimate.reviewed))
            for period, row, estimate in rows
            if (row.action, row.metric) == (action, metric)
            and (of := period if not row.by else period_of(row.by, row.value)) is not None
        ]
        shown, known = _finest(points), truth.get((metric, action), ())
        yield Series(action, metric, "items", shown, known, _curves(results, metric, action, shown))


def _curves(
    results: Sequence[tuple[Period, PrevalenceResult | MetricsResult]], metric: str, name: str, points: Sequence[Point]
) -> tuple[Curve, ...]:
    """Return the maturity curves of the periods of some points."""
    shown = {point.period for point in points}
    steps: dict[Period, dict[float, Point]] = {}
    for period, body in results:
        for known in body.curves:
            of = period_of(known.by, known.value) if known.by else period
            if (known.metric, known.name) == (metric, name) and of in shown:
                estimate = known.found.estimate
                point = Point(of, estimate.value, estimate.interval, estimate.biased, None, estimate.reviewed)
                steps.setdefault(of, {})[known.age_days] = point
    return tuple(Curve(of, tuple(sorted(steps[of].items()))) for of in sorted(steps))


def _finest(points: Sequence[tuple[str, Point]]) -> tuple[Point, ...]:
    """Return the points of the kind of period that has most of them: complete results, months, weeks or days."""
    kinds = dict.fromkeys(by for by, _ in points)
    best = max(kinds, key=lambda by: len({point.period for of, point in points if of == by}))
    newest = {point.period: point for by, point in points if by == best}
    return tuple(newest[period] for period in sorted(newest))
