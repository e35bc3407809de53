"""`vigil monitor prevalence` and `vigil monitor metrics`: estimates from a reviewed sample of the traffic."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vigil.cli.data.tables import print_table
from vigil.cli.monitor.options import ExposureFile, PolicyVersion, ResultFile, TrafficPath

if TYPE_CHECKING:
    from vigil_evaluation.stats.intervals import Interval
    from vigil_monitoring.estimates.inputs import EstimationInputs
    from vigil_monitoring.estimates.label_answers import DomainEstimate
    from vigil_monitoring.estimates.maturity import KnownAfter, Maturity
    from vigil_monitoring.survey.estimators import Estimate

QueuePath = Annotated[Path, typer.Argument(metavar="QUEUE", help="The queue (.jsonl) that was drawn from it.")]
ReviewsPaths = Annotated[
    list[Path],
    typer.Argument(metavar="REVIEWS…", help="Decisions about the queue; further files may also have those of other queues."),
]
By = Annotated[
    str | None,
    typer.Option(
        "--by",
        metavar="A,B",
        help="Slices, each column by itself: day, week, month, content_type, language, market, presence, action, decisive, "
        "review, bundle, policy.",
    ),
]
From = Annotated[
    datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="First day, UTC (default: that of the queue).")
]
Until = Annotated[
    datetime | None, typer.Option("--until", formats=["%Y-%m-%d"], help="Last day, included (default: that of the queue).")
]
Cluster = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="author or thread: intervals hold for other authors too, not only for this traffic."),
]
Gold = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Items with known truth (id, label, value): correct for reviewers' errors."),
]
Biased = Annotated[
    bool, typer.Option("--biased", help="Accept reviews that are no probability sample, and mark every number as biased.")
]
Confidence = Annotated[float, typer.Option(min=0.5, max=0.999, help="Confidence of each interval.")]


def register(group: typer.Typer) -> None:
    """Add the commands to ``group``."""
    group.command("prevalence")(prevalence)
    group.command("metrics")(metrics)


def prevalence(
    traffic: TrafficPath,
    queue: QueuePath,
    reviews: ReviewsPaths,
    *,
    by: By = None,
    start: From = None,
    until: Until = None,
    exposure: ExposureFile = None,
    cluster: Cluster = None,
    gold: Gold = None,
    policy_version: PolicyVersion = None,
    biased: Biased = False,
    confidence: Confidence = 0.95,
    to: ResultFile = None,
) -> None:
    """Estimate the share of violating items, and of their exposure, for each label and slice, from one reviewed sample.

    See docs/monitoring.md for the estimators and what their intervals mean.
    """
    from dataclasses import asdict

    from vigil_monitoring.estimates.maturity_curves import prevalence_curves
    from vigil_monitoring.estimates.prevalence import PrevalenceResult, estimate_prevalence
    from vigil_monitoring.results import write_result

    options = _options(by, start, until, exposure, cluster, gold, policy_version, biased=biased)
    found = _read(traffic, queue, reviews, options, reasons=False)
    rows = tuple(estimate_prevalence(found.reviewed, found.population, found.accuracies, confidence, found.maturity))
    result = PrevalenceResult(
        traffic=str(traffic),
        queue=str(queue),
        labels=found.reviewed.labels,
        confidence=confidence,
        cluster=cluster,
        biased=found.reviewed.biased,
        rows=rows,
        maturity=found.maturity,
        notes=found.notes,
        curves=tuple(prevalence_curves(found, confidence)),
    )
    _head(found)
    print_table(
        ["label", "slice", "weight", "prevalence", f"{confidence:.0%} interval", *_STATE],
        (
            [
                *(row.label, _slice(row.by, row.value), row.weight, *_value(row.found.estimate)),
                *_state(row.found, final=row.final),
            ]
            for row in rows
        ),
    )
    _unknown(row.found for row in rows)
    _arrivals(found.maturity)
    _curves("label", result.curves, {("prevalence", row.label, row.by, row.value, row.weight): row.found for row in rows})
    if to is not None:
        write_result(to, "prevalence", found.period, asdict(result))


def metrics(
    traffic: TrafficPath,
    queue: QueuePath,
    reviews: ReviewsPaths,
    *,
    by: By = None,
    start: From = None,
    until: Until = None,
    exposure: ExposureFile = None,
    cluster: Cluster = None,
    gold: Gold = None,
    policy_version: PolicyVersion = None,
    biased: Biased = False,
    confidence: Confidence = 0.95,
    to: ResultFile = None,
) -> None:
    """Estimate precision, recall and false-positive rate of each action and of the policy, and count reviewers' load.

    See docs/monitoring.md for what counts as right, and for the estimators.
    """
    from dataclasses import asdict

    from vigil_monitoring.estimates.label_answers import ANY
    from vigil_monitoring.estimates.maturity_curves import metric_curves
    from vigil_monitoring.estimates.online_metrics import MetricsResult, count_load, estimate_metrics
    from vigil_monitoring.results import write_result

    options = _options(by, start, until, exposure, cluster, gold, policy_version, biased=biased)
    found = _read(traffic, queue, reviews, options, reasons=True)
    population = found.population
    rows = tuple(estimate_metrics(found.reviewed, population, found.accuracies, confidence))
    days = (found.period.end - found.period.start).days + 1
    policies = tuple(sorted(population.policies.values))
    notes = found.notes
    if not rows:
        notes = (*notes, "no decision has an action other than allow, so there are counts only: metrics are of actions")
    if len(policies) > 1:
        notes = (
            *notes,
            f"the traffic was decided by {len(policies)} policies ({', '.join(policies)}); --by policy separates them",
        )
    result = MetricsResult(
        traffic=str(traffic),
        queue=str(queue),
        labels=found.reviewed.labels,
        confidence=confidence,
        cluster=cluster,
        biased=found.reviewed.biased,
        policies=policies,
        rows=rows,
        load=tuple(count_load(population, days, found.reviewed.minutes)),
        maturity=found.maturity,
        notes=notes,
        curves=tuple(metric_curves(found, confidence)),
    )
    _head(found._replace(notes=notes))
    cells: dict[tuple[str, ...], dict[str, DomainEstimate]] = {}
    for row in rows:
        cells.setdefault((row.action, row.label, _slice(row.by, row.value), row.weight), {})[row.metric] = row.found
    names = ("precision", "recall", "false_positive_rate")
    if cells:
        print_table(
            ["action", "label", "slice", "weight", *(name.replace("_", " ") for name in names)],
            ([*key, *(_cell(of.get(name)) for name in names)] for key, of in cells.items()),
        )
    _unknown(row.found for row in rows)
    print_table(
        ["slice", "decisions", "reviews", "reviews a day", "reviewer minutes a day", "actions"],
        (
            [
                _slice(row.by, row.value),
                row.decisions,
                row.reviews,
                f"{row.reviews_per_day:,.1f}",
                "-" if row.minutes_per_day is None else f"{row.minutes_per_day:,.0f}",
                ", ".join(f"{name} {count:,}" for name, count in sorted(row.actions.items())),
            ]
            for row in result.load
        ),
    )
    of_any: dict[tuple[str, ...], DomainEstimate] = {
        (row.metric, row.action, row.by, row.value, row.weight): row.found for row in rows if row.label == ANY
    }
    _curves("action", result.curves, of_any)
    if to is not None:
        write_result(to, "metrics", found.period, asdict(result))


_STATE = ("reviewed", "positives", "effective", "method", "unknown", "if all 0 or 1")


def _options(  # noqa: PLR0917 (options of both commands)
    by: str | None,
    start: datetime | None,
    until: datetime | None,
    exposure: Path | None,
    cluster: str | None,
    gold: Path | None,
    policy_version: str | None,
    *,
    biased: bool,
) -> dict[str, Any]:
    return {
        "by": tuple(name.strip() for name in (by or "").split(",") if name.strip()),
        "start": _date(start),
        "end": _date(until),
        "exposure": exposure,
        "cluster": cluster,
        "gold": gold,
        "policy_version": policy_version,
        "biased": biased,
    }


def _date(given: datetime | None) -> date | None:
    return None if given is None else given.date()


def _read(traffic: Path, queue: Path, reviews: Sequence[Path], options: dict[str, Any], *, reasons: bool) -> "EstimationInputs":
    from vigil_data.progress import Progress
    from vigil_monitoring.estimates.inputs import EstimationOptions, read_inputs

    with Progress("summing", unit="decisions") as progress:
        return read_inputs(traffic, queue, reviews, EstimationOptions(**options), reasons=reasons, progress=progress)


def _head(found: "EstimationInputs") -> None:
    """Print the period, the size of the sample, how answers are corrected, and the notes."""
    from vigil_data.errors import one_line

    reviewed = found.reviewed
    typer.echo(f"period: {found.period}; {found.population.rows:,} decisions, {len(reviewed.sample):,} drawn for review")
    for label, of in found.accuracies.items():
        typer.echo(
            f"reviewers on gold items, {one_line(label)}: sensitivity {of.sensitivity:.3f} of {of.positives:g}, specificity "
            f"{of.specificity:.3f} of {of.negatives:g}; estimates are corrected for it"
        )
    if reviewed.biased:
        typer.echo("BIASED: the reviewed rows are no probability sample; no number below describes the traffic")
    for note in found.notes:
        typer.echo(f"note: {one_line(note)}")


def _slice(by: str, value: str) -> str:
    return "all" if not by else f"{by} {value}"


def _value(of: "Estimate") -> tuple[str, str]:
    return "-" if of.value is None else share_text(of.value), _interval(of.interval)


def _interval(of: "Interval | None") -> str:
    return "-" if of is None else f"{_percent(of.low)} to {share_text(of.high)}"


def _state(found: "DomainEstimate", *, final: bool | None) -> Iterable[Any]:
    """Return counts of an estimate, its method with marks, the unknown share, and the bounds."""
    of = found.estimate
    effective = "-" if of.effective is None else f"{of.effective:,.0f}"
    return of.reviewed, of.positives, effective, _method(of, final), f"{found.unknown:.1%}", _interval(found.bounds)


def _cell(found: "DomainEstimate | None") -> str:
    """Return value, interval and bounds of a metric."""
    if found is None or (value := found.estimate.value) is None:
        return "-"
    of = found.estimate
    bounds = "" if found.bounds is None else f" [{_interval(found.bounds)}]"
    mark = " BIASED" if of.biased else ""
    return f"{share_text(value)} ({_interval(of.interval)}){bounds}{mark}"


def _unknown(found: "Iterable[DomainEstimate]") -> None:
    """Print what the bounds are, if there are any."""
    from vigil_monitoring.estimates.label_answers import MAX_UNKNOWN_SHARE

    if any(of.bounds is not None for of in found):
        typer.echo(
            f"more than {MAX_UNKNOWN_SHARE:.0%} unknown: the last range is the estimate if all unknown targets were 0, or all 1; "
            "the estimate itself takes them to be as the answered rows of their stratum"
        )


def _method(of: "Estimate", final: bool | None) -> str:
    marks = [of.method]
    if of.corrected:
        marks.append("corrected")
    if of.biased:
        marks.append("BIASED")
    if final is False:
        marks.append("not final")
    return ", ".join(marks)


def share_text(share: float) -> str:
    """Return a share in per cent with three significant digits: ``0.212 %``."""
    return f"{_percent(share)} %"


def _percent(share: float) -> str:
    if 0 < share < 1e-6:
        return "<0.0001"
    if 0.99 < share < 1:
        return f"{min(100 * share, 99.99):.2f}"
    return f"{100 * share:.3g}"


def _arrivals(maturity: "Maturity | None") -> None:
    """Print how answers arrived, and which periods are not final."""
    if maturity is None:
        return
    shown = {f"{of.arrived:.0%}": of.age_days for of in reversed(maturity.arrivals) if of.arrived > 0}
    steps = ", ".join(f"{share} within {age:g} d" for share, age in reversed(shown.items()))
    typer.echo(f"answers by age of the decision: {steps or 'none'}; expected in the end: {maturity.expected:.0%}")
    for of in maturity.periods:
        if not of.final:
            name = "the whole period" if not of.by else f"{of.by} {of.value}"
            typer.echo(f"not final: {name}, {of.answered:,} of {of.rows:,} rows are answered; more answers are expected")


def _curves(what: str, curves: "Sequence[KnownAfter]", now: "Mapping[tuple[str, ...], DomainEstimate]") -> None:
    """Print estimates by items as they were known at each age, and as they are known now."""
    if not curves:
        return
    ages = sorted({of.age_days for of in curves})
    lines: dict[tuple[str, ...], dict[float, DomainEstimate]] = {}
    for of in curves:
        lines.setdefault((of.metric, of.name, of.by, of.value), {})[of.age_days] = of.found
    typer.echo()
    typer.echo("as it was known when all decisions of a period had an age, with the share that was answered by then:")
    print_table(
        [what, "metric", "period", *(f"after {age:g} d" for age in ages), "now"],
        (
            [
                name,
                metric.replace("_", " "),
                _slice(by, value),
                *(_known(found.get(age)) for age in ages),
                _known(now[metric, name, by, value, "items"]),
            ]
            for (metric, name, by, value), found in lines.items()
        ),
    )


def _known(found: "DomainEstimate | None") -> str:
    if found is None or found.estimate.value is None:
        return "-"
    of = found.estimate
    return f"{share_text(found.estimate.value)} ({_interval(of.interval)}), {1 - found.unknown:.0%}"
