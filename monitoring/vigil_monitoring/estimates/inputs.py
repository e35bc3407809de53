"""What `vigil monitor prevalence` and `vigil monitor metrics` read: traffic, a queue, reviews, gold items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import NamedTuple

from vigil_data.errors import UserError
from vigil_data.progress import ProgressCallback
from vigil_data.reviews.decisions import Decision
from vigil_monitoring.agreement.accuracy import AnswerAccuracy
from vigil_monitoring.estimates.label_answers import ANY
from vigil_monitoring.estimates.maturity import Maturity, measure_maturity
from vigil_monitoring.estimates.population import Population, sum_traffic
from vigil_monitoring.estimates.reviewed_sample import ReviewedSample, measured_accuracy, read_decisions, reviewed_sample
from vigil_monitoring.estimates.slicing import check_slices
from vigil_monitoring.queues.queue import QueueRecord, read_queue
from vigil_monitoring.results import Period
from vigil_monitoring.reviews.answers import review_warnings
from vigil_monitoring.traffic.exposures import Exposures
from vigil_monitoring.traffic.reader import open_traffic

MAX_POPULATION_CHANGE = 0.01
"""Largest relative difference between the decisions from which a queue was drawn and those of the traffic that is given."""


@dataclass(frozen=True)
class EstimationOptions:
    """Options of an estimate.

    Attributes:
        by: names of slices.
        start: first day (default: that of the queue).
        end: last day, included (default: that of the queue).
        exposure: file of exposures that replaces those of the traffic and of the queue.
        cluster: column of clusters.
        gold: file of items with known truth.
        policy_version: policy version that all decisions must have.
        biased: accept reviews that are no probability sample.
    """

    by: tuple[str, ...] = ()
    start: date | None = None
    end: date | None = None
    exposure: Path | None = None
    cluster: str | None = None
    gold: Path | None = None
    policy_version: str | None = None
    biased: bool = False


class EstimationInputs(NamedTuple):
    """What an estimate starts from.

    Attributes:
        period: days of the traffic.
        reviewed: the sample with its targets.
        decisions: reviewers' decisions about it, from which they follow.
        population: sums over the traffic.
        accuracies: accuracy of the targets by label; empty without gold items.
        maturity: how answers arrived.
        notes: what a reader should know.
    """

    period: Period
    reviewed: ReviewedSample
    decisions: Sequence[Decision]
    population: Population
    accuracies: Mapping[str, AnswerAccuracy]
    maturity: Maturity | None
    notes: tuple[str, ...]


def read_inputs(
    traffic: Path,
    queue: Path,
    reviews: Sequence[Path],
    options: EstimationOptions,
    *,
    reasons: bool = False,
    progress: ProgressCallback | None = None,
) -> EstimationInputs:
    """Read traffic, queue and reviews, and sum the traffic.

    Args:
        traffic: a traffic log, or a table of scores.
        queue: the queue that was drawn from it.
        reviews: files of decisions about the queue.
        options: options.
        reasons: whether decisive labels are needed.
        progress: see :func:`.population.sum_traffic`.

    Raises:
        UserError: for every mistake in the files, and traffic that is not that of the queue.
    """
    by = check_slices(options.by)
    found = read_queue(queue)
    decisions = read_decisions(reviews, found, options.policy_version)
    accuracies = measured_accuracy(options.gold, found, decisions)
    start, end = options.start or _day(found.record.start), options.end or _day(found.record.end)
    opened = open_traffic(traffic, start, end, found.record.role, options.exposure)
    if options.exposure is not None:
        exposures = Exposures(options.exposure).of(found.table["id"].combine_chunks())
        place = found.table.schema.get_field_index("exposure")
        found = found._replace(table=found.table.set_column(place, "exposure", exposures))
    period = Period(opened.days[0], opened.days[-1])
    reviewed = reviewed_sample(
        found,
        decisions,
        days=(period.start, period.end) if (options.start or options.end) else None,
        cluster=options.cluster,
        biased=options.biased,
        name=str(queue),
    )
    population = sum_traffic(opened, reviewed.labels, by, reasons=reasons, progress=progress)
    notes = [*review_warnings(found, decisions), *reviewed.notes]
    if not (options.start or options.end):
        notes += _same_population(found.record, population, traffic, queue)
    if population.without_exposure and len(population.weights) > 1:
        count = population.without_exposure
        notes.append(f"{count:,} of {population.rows:,} decisions have no exposure; estimates by exposure leave them out")
    if accuracies and len(reviewed.labels) > 1:
        notes.append(f"estimates of {ANY} are not corrected for reviewers' errors, which are measured for each label by itself")
    maturity = measure_maturity(reviewed, decisions, by)
    return EstimationInputs(period, reviewed, decisions, population, accuracies, maturity, tuple(notes))


def _day(text: str | None) -> date | None:
    return None if text is None else date.fromisoformat(text)


def _same_population(record: QueueRecord, population: Population, traffic: Path, queue: Path) -> list[str]:
    """Return a note if the traffic has changed a little since the queue was drawn.

    Raises:
        UserError: if it is not the traffic from which the queue was drawn.
    """
    if not record.items or record.items == population.rows:
        return []
    text = f"{traffic} has {population.rows:,} decisions of the queue's period, but {queue} was drawn from {record.items:,}"
    if abs(population.rows - record.items) > MAX_POPULATION_CHANGE * record.items:
        raise UserError(f"{text}; give the traffic and the period from which it was drawn ({record.traffic})")
    return [f"{text}, as after an erasure or late lines; shares are of the present ones"]
