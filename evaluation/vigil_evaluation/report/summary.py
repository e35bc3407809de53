"""What a reader needs before the tables: the main results, and what stands out, in plain sentences with counts."""

from collections.abc import Iterator
from dataclasses import dataclass

from vigil_evaluation.policy.impact import PolicyImpact
from vigil_evaluation.report.fairness_heatmap import GAP_METRICS, SubgroupGap, subgroup_gaps
from vigil_evaluation.report.rendering import format_percent, format_points
from vigil_evaluation.results import EvaluationResults
from vigil_evaluation.slices.discovery import FoundSlice
from vigil_evaluation.slices.results import LabelMetrics, MacroAverage
from vigil_evaluation.stats.intervals import Interval

MIN_ITEMS_FOR_REMARK = 20
"""A number that rests on fewer items is not singled out."""

MIN_UNITS_FOR_RELIABLE_INTERVALS = 30
"""Bootstrap intervals from fewer units are too narrow; the summary warns of them."""

POORLY_CALIBRATED = 0.1
"""Calibration error from which a label is named."""

MAX_LISTED = 3
"""Slices, and gaps, named in the summary."""


@dataclass(frozen=True, slots=True)
class Remark:
    """A result that stands out.

    Attributes:
        topic: subject in a word or two.
        text: one sentence.
        section: id of the section with the details.
    """

    topic: str
    text: str
    section: str


def summary_sentences(results: EvaluationResults) -> list[str]:
    """Return the main results in sentences that require no knowledge of metrics."""
    overall, count = results.overall, len(results.overall.labels)
    scored = f"{overall.items:,} items were scored for {count} label{'' if count == 1 else 's'}"
    if overall.all_right is None:
        return [f"{scored}. No item has a known target, so there is nothing to measure."]
    correct = _with_interval(overall.all_right, overall.all_right_interval)
    known = f"{overall.judged:,} items with a known target"
    sentences = [f"{scored}. At the thresholds below, {correct} of the {known} have no wrong decision."]
    phrases = {
        "recall": "catches {} of the items that should be flagged",
        "precision": "is right about {} of the items it flags",
        "false_positive_rate": "flags {} of the items that should not be flagged",
    }
    means = {metric: overall.macro[metric] for metric in phrases}
    defined = [phrases[metric].format(_mean(mean)) for metric, mean in means.items() if mean.value is not None]
    if defined:
        labels = {mean.labels for mean in means.values() if mean.value is not None}
        over = "the labels" if labels == {count} else f"{' or '.join(str(n) for n in sorted(labels))} of {count} labels"
        average = "the model" if count == 1 else f"the model, on average over {over},"
        listed = defined[0] if len(defined) == 1 else f"{', '.join(defined[:-1])} and {defined[-1]}"
        sentences.append(f"At these thresholds {average} {listed}.")
    if results.policy is not None and results.policy.items:
        sentences.append(_policy_sentence(results.policy))
    return sentences


def remarks(results: EvaluationResults) -> list[Remark]:
    """Return what stands out, the most serious kinds first; every sentence states counts."""
    return [
        *_policy(results),
        *_abstention(results),
        *_labels(results),
        *_slices(results),
        *_fairness(results),
        *_functional_tests(results),
        *_calibration(results),
        *_caveats(results),
    ]


def _labels(results: EvaluationResults) -> Iterator[Remark]:
    labels = results.overall.labels
    ranked = {label: n.average_precision for label, n in labels.items() if n.average_precision is not None}
    if len(ranked) > 1:
        weakest = min(ranked, key=lambda label: ranked[label])
        n = labels[weakest]
        interval = _interval(n.intervals.get("average_precision"))
        text = (
            f"{weakest} has the lowest average precision: {ranked[weakest]:.3f}{interval}; a random ranking would have "
            f"{n.positive / n.known:.3f}. {n.positive:,} of its {n.known:,} known items are positive."
        )
        yield Remark("Weakest label", text, "labels")
    if idle := [
        label for label, n in labels.items() if n.positive >= MIN_ITEMS_FOR_REMARK and not n.true_positives + n.false_positives
    ]:
        yield Remark("Never flagged", f"No known item reaches the threshold of {', '.join(idle)}.", "labels")
    if unranked := [f"{label} ({_why(n, results.enough)})" for label, n in labels.items() if n.average_precision is None]:
        yield Remark("Not ranked", f"Labels without ranking metrics, left out of all averages: {', '.join(unranked)}.", "labels")


def _slices(results: EvaluationResults) -> Iterator[Remark]:
    if results.worst is None:
        return
    for found in results.worst.slices[:MAX_LISTED]:
        yield Remark("Weak slice", slice_sentence(found), "worst-slices")
    if (more := results.worst.found - MAX_LISTED) > 0:
        text = (
            f"{more} more of the {results.worst.searched:,} slices searched {'is' if more == 1 else 'are'} worse than the rest."
        )
        yield Remark("Weak slices", text, "worst-slices")


def slice_sentence(found: FoundSlice) -> str:
    """Describe a slice on which decisions are worse than on the rest."""
    where = " and ".join(f"{c.column} is {'not known' if c.value is None else c.value}" for c in found.conditions)
    interval = "" if found.interval is None else f" ({_points_interval(found.interval)})"
    p_value = "below 0.001" if found.adjusted_p < 0.001 else f"{found.adjusted_p:.3f}"
    return (
        f"Where {where}, {format_percent(found.all_right)} of {found.judged:,} items have no wrong decision, compared with "
        f"{format_percent(found.rest)} of all others: {format_points(found.difference)} points{interval}, corrected p {p_value}."
    )


def _fairness(results: EvaluationResults) -> Iterator[Remark]:
    all_gaps = subgroup_gaps(results)
    harmful = sorted((gap for gap in all_gaps if gap.margin > 0 and gap.worse), key=lambda gap: -gap.margin)
    for gap in harmful[:MAX_LISTED]:
        yield Remark("Unequal treatment", _gap_sentence(gap), "fairness")
    if harmful:
        significant = sum(gap.margin > 0 for gap in all_gaps)
        by_chance = (1 - results.confidence) * len(all_gaps)
        text = (
            f"{significant:,} of {len(all_gaps):,} gaps between a subgroup and the rest have an interval that excludes 0, "
            f"{len(harmful):,} of them to the subgroup's disadvantage; about {by_chance:.0f} would by chance alone."
        )
        yield Remark("All gaps", text, "fairness")


def _gap_sentence(gap: SubgroupGap) -> str:
    harm = "fewer positives are caught" if gap.metric == "recall_gap" else "more negatives are flagged"
    return (
        f"Among items that mention {gap.value}, {harm} for {gap.label}: the {GAP_METRICS[gap.metric]} differs from that of all "
        f"other items by {format_points(gap.size)} points ({_points_interval(gap.interval)}; {gap.known:,} known, "
        f"{gap.positive:,} positive)."
    )


def _functional_tests(results: EvaluationResults) -> Iterator[Remark]:
    if results.functionality is None:
        return
    cases = [
        case for case in results.functionality.cases if case.all_right.value is not None and case.items >= MIN_ITEMS_FOR_REMARK
    ]
    if cases:
        worst = min(cases, key=lambda case: case.all_right.value or 0.0)
        correct = _with_interval(worst.all_right.value or 0.0, worst.all_right.interval)
        text = f"{worst.name} has the lowest accuracy: {correct} of {worst.all_right.count:,} items have no wrong decision."
        yield Remark("Functional test", text, "functional-tests")


def _calibration(results: EvaluationResults) -> Iterator[Remark]:
    poor = [
        f"{label} (off by {n.calibration_error:.2f}{_interval(n.intervals.get('calibration_error'), 2)} on {n.known:,} items)"
        for label, n in results.overall.labels.items()
        if n.calibration_error is not None and n.calibration_error > POORLY_CALIBRATED and n.known >= MIN_ITEMS_FOR_REMARK
    ]
    if poor:
        section = "calibration" if results.calibration else "labels"
        text = f"The probabilities of these labels are not frequencies: {', '.join(poor)}."
        yield Remark("Poorly calibrated", text, section)


def _policy(results: EvaluationResults) -> Iterator[Remark]:
    constraints = results.policy.constraints if results.policy is not None else []
    for result in constraints:
        if result.met is False and result.estimate is not None:
            between = (
                ""
                if result.low is None or result.high is None
                else f" ({format_percent(result.low)} to {format_percent(result.high)})"
            )
            group = "" if result.group is None else f", worst where {result.rule.column} is {result.group}"
            text = (
                f"{result.rule.place} requires {result.rule}, but the value on these items is {format_percent(result.estimate)}"
                f"{between}, {result.count:,} of {result.rows:,}{group}."
            )
            yield Remark("Constraint violated", text, "policy")
    if unconfirmed := sum(bool(result.met) and not result.confirmed for result in constraints):
        text = f"{unconfirmed} of {len(constraints)} constraints hold on these items, but not with the required confidence."
        yield Remark("Not confirmed", text, "policy")


def _abstention(results: EvaluationResults) -> Iterator[Remark]:
    for warning in results.conformal.warnings if results.conformal is not None else []:
        yield Remark("Guarantee in doubt", f"{warning[:1].upper()}{warning[1:]}.", "abstention")


def _policy_sentence(policy: PolicyImpact) -> str:
    shares = [f"{impact.action} {format_percent(impact.share)}" for impact in policy.actions if impact.items]
    confirmed = sum(bool(result.confirmed) for result in policy.constraints)
    caught = "" if policy.harm_caught is None else f", and {format_percent(policy.harm_caught)} of the known harm is caught"
    return (
        f"Under the policy {policy.name}, version {policy.version}, the actions are {', '.join(shares)} of the items. "
        f"{confirmed} of its {len(policy.constraints)} constraints are confirmed{caught}."
    )


def _caveats(results: EvaluationResults) -> Iterator[Remark]:
    if results.replicates and results.cluster is not None and results.units < MIN_UNITS_FOR_RELIABLE_INTERVALS:
        text = f"Intervals rest on only {results.units} units of {results.cluster} and are too narrow."
        yield Remark("Few units", text, "how-to-read")
    absent = dict.fromkeys([*results.absent_slices, *(results.fairness.absent if results.fairness is not None else [])])
    if absent:
        text = f"Requested columns that are absent from the predictions: {', '.join(absent)}."
        yield Remark("Absent columns", text, "how-to-read")


def _why(numbers: LabelMetrics, enough: int) -> str:
    if not numbers.known:
        return "no item has a known target"
    if not numbers.positive:
        return f"none of its {numbers.known:,} known items is positive"
    if numbers.positive == numbers.known:
        return f"all of its {numbers.known:,} known items are positive"
    return f"{numbers.positive:,} of its {numbers.known:,} known items are positive; {enough} of each class are needed"


def _with_interval(value: float, interval: Interval | None) -> str:
    if interval is None:
        return format_percent(value)
    return f"{format_percent(value)} ({format_percent(interval[0])} to {format_percent(interval[1])})"


def _mean(mean: MacroAverage) -> str:
    return _with_interval(mean.value or 0.0, mean.interval)


def _interval(interval: Interval | None, digits: int = 3) -> str:
    return "" if interval is None else f" ({interval.low:.{digits}f} to {interval.high:.{digits}f})"


def _points_interval(interval: Interval) -> str:
    return f"{format_points(interval.low)} to {format_points(interval.high)}"
