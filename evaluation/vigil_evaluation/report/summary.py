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

EXTREME_VOLUME = 0.5
"""Share of all items above which a volume is named, since flagging, reviewing or acting on more than half of them selects little.
Flags are not named if as large a share of the known targets is positive."""

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
    items = "1 item was" if overall.items == 1 else f"{overall.items:,} items were"
    scored = f"{items} scored for {count} label{'' if count == 1 else 's'}"
    if not results.labelled:
        return [
            f"{scored}. No item has a known target: nothing is labelled, so there is no metric such as precision or recall.",
            _volume_sentence(results),
            *([_drift_sentence(results)] if results.conformal is not None and results.conformal.drift is not None else []),
            *([_policy_sentence(results.policy)] if results.policy is not None else []),
        ]
    if overall.all_right is None:
        return [
            f"{scored}. Only {overall.judged:,} have a known target, fewer than {results.enough}, too few to measure anything."
        ]
    correct = share_with_interval(overall.all_right, overall.all_right_interval)
    known = f"{overall.judged:,} items with a known target"
    sentences = [f"{scored}. At the thresholds below, {correct} of the {known} have no wrong decision."]
    if biased := biased_labels(results):
        sentences.insert(
            0,
            f"The labelled items of {', '.join(biased)} are not a random sample, so their metrics may be far from those of all "
            f"items: see the warning above.",
        )
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


def biased_labels(results: EvaluationResults) -> list[str]:
    """Return the labels whose labelled items are not a random sample, or were not chosen as stated."""
    return [] if results.label_selection is None else results.label_selection.labels


def remarks(results: EvaluationResults) -> list[Remark]:
    """Return what stands out, the most serious kinds first; every sentence states counts."""
    return [
        *_policy(results),
        *_abstention(results),
        *_volumes(results),
        *(_labels(results) if results.labelled else ()),
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
        random = "" if results.weighted else f"; a random ranking would have {n.positive / n.known:.3f}"
        text = (
            f"{weakest} has the lowest average precision: {ranked[weakest]:.3f}{interval}{random}. "
            f"{n.positive:,} of its {n.known:,} known items are positive."
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
        correct = share_with_interval(worst.all_right.value or 0.0, worst.all_right.interval)
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
        hold = "holds" if unconfirmed == 1 else "hold"
        text = f"{unconfirmed} of {len(constraints)} constraints {hold} on these items, but not with the required confidence."
        yield Remark("Not confirmed", text, "policy")
    if unknown := sum(result.estimate is None for result in constraints):
        text = f"{unknown} of {len(constraints)} constraints cannot be measured, because no target that they concern is known."
        yield Remark("Not measured", text, "policy")


def _volumes(results: EvaluationResults) -> Iterator[Remark]:
    """Yield volumes of more than :data:`EXTREME_VOLUME` of all items, and of none."""
    conformal, items = results.conformal, results.overall.items
    if items < MIN_ITEMS_FOR_REMARK:
        return
    if conformal is not None and (reviewed := conformal.reviewed_any) is not None and reviewed > EXTREME_VOLUME:
        most = max(conformal.labels.items(), key=lambda label: label[1].reviewed or 0.0)
        by = f", {format_percent(most[1].reviewed or 0.0)} that of {most[0]}" if len(conformal.labels) > 1 else ""
        text = (
            f"{format_percent(reviewed)} of all {items:,} items reach the review threshold{' of some label' if by else ''}{by}."
        )
        yield Remark("Most items reviewed", text, "abstention")
    for label, share in results.volumes.overall.labels.items():
        n = results.overall.labels[label]
        positive = n.positive / n.known if n.known else 0.0
        if share.value is not None and share.value > max(EXTREME_VOLUME, positive):
            known = f"; {n.positive:,} of the {n.known:,} known ones are positive" if n.known else ""
            text = f"{label} flags {share_with_interval(share.value, share.interval)} of all {items:,} items{known}."
            yield Remark("Most items flagged", text, "labels" if results.labelled else "volumes")
    if idle := [k for k, share in results.volumes.overall.labels.items() if share.value == 0 and not results.labelled]:
        yield Remark("Never flagged", f"None of {items:,} items reaches the threshold of {', '.join(idle)}.", "volumes")
    for action in results.policy.actions[1:] if results.policy is not None else []:
        if action.share > EXTREME_VOLUME:
            text = f"{share_with_interval(action.share, action.interval)} of all {items:,} items get the action {action.action}."
            yield Remark("Most items acted on", text, "policy")


def _volume_sentence(results: EvaluationResults) -> str:
    volumes = results.volumes.overall
    total = share_with_interval(volumes.any_label.value or 0.0, volumes.any_label.interval)
    if len(volumes.labels) == 1:
        return f"At the threshold below, {total} of the items are flagged."
    return f"At the thresholds below, {total} of the items are flagged for at least one label."


def _drift_sentence(results: EvaluationResults) -> str:
    assert results.conformal is not None
    assert results.conformal.drift is not None
    drift = results.conformal.drift
    if not drift.warnings:
        return "Their probabilities do not differ noticeably from those of the calibration split."
    drifted = [label for label, test in drift.labels.items() if test.warning is not None]
    drifted += ["the mix of modalities"] if drift.presence is not None and drift.presence.warning is not None else []
    return f"They differ from the calibration split in {', '.join(drifted)}, so calibration and guarantees may not hold for them."


def _abstention(results: EvaluationResults) -> Iterator[Remark]:
    for warning in results.conformal.warnings if results.conformal is not None else []:
        yield Remark("Guarantee in doubt", f"{warning[:1].upper()}{warning[1:]}.", "abstention")


def _policy_sentence(policy: PolicyImpact) -> str:
    shares = [f"{impact.action} {format_percent(impact.share)}" for impact in policy.actions if impact.items]
    confirmed, count = sum(bool(result.confirmed) for result in policy.constraints), len(policy.constraints)
    caught = "" if policy.harm_caught is None else f", and {format_percent(policy.harm_caught)} of the known harm is caught"
    held = f" {confirmed} of its {count} constraints {'is' if confirmed == 1 else 'are'} confirmed{caught}." if count else ""
    return f"Under the policy {policy.name}, version {policy.version}, the actions are {', '.join(shares)} of the items.{held}"


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


def share_with_interval(value: float, interval: Interval | None) -> str:
    """Return a share and its interval in percent."""
    if interval is None:
        return format_percent(value)
    return f"{format_percent(value)} ({format_percent(interval[0])} to {format_percent(interval[1])})"


def _mean(mean: MacroAverage) -> str:
    return share_with_interval(mean.value or 0.0, mean.interval)


def _interval(interval: Interval | None, digits: int = 3) -> str:
    return "" if interval is None else f" ({interval.low:.{digits}f} to {interval.high:.{digits}f})"


def _points_interval(interval: Interval) -> str:
    return f"{format_points(interval.low)} to {format_points(interval.high)}"
