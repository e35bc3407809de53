"""What a reader should be told before the tables: the verdict, and what stands out, each in one plain sentence with counts."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from vigil_evaluation.policy.impact import PolicyFindings
from vigil_evaluation.predictions import arrays
from vigil_evaluation.report.fairness_heatmap import GAPS, Gap, gaps
from vigil_evaluation.report.hardest_errors import mistakes
from vigil_evaluation.report.rendering import percent, points
from vigil_evaluation.results import Findings, LabelFindings, Macro
from vigil_evaluation.slices.discovery import FoundSlice
from vigil_evaluation.stats.intervals import Interval

ENOUGH = 20
"""A number that rests on fewer items is not singled out."""

FEW_UNITS = 30
"""Intervals from fewer units are too narrow."""

POORLY_CALIBRATED = 0.1
LISTED = 3
"""Slices, and gaps, that are named in the summary."""


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that stands out.

    Attributes:
        topic: what it is about, in a word or two.
        text: one sentence.
        section: the id of the section that has more of it.
    """

    topic: str
    text: str
    section: str


def hardest(findings: Findings, table: pa.Table) -> list[str]:
    """The ids of all items that the report shows as errors, each once.

    Args:
        findings: of the table.
        table: the predictions table.
    """
    targets_NL, probabilities_NL = arrays(table, list(findings.overall.labels))
    ids: dict[str, None] = {}
    for i, numbers in enumerate(findings.overall.labels.values()):
        for side in mistakes(targets_NL[:, i], probabilities_NL[:, i], numbers.threshold):
            ids |= dict.fromkeys(side.ids(table))
    return list(ids)


def verdict(findings: Findings) -> list[str]:
    """What the model does, in sentences that need no knowledge of metrics."""
    everything, count = findings.overall, len(findings.overall.labels)
    scored = f"{everything.items:,} items were scored for {count} label{'' if count == 1 else 's'}"
    if everything.all_right is None:
        return [f"{scored}, and none of them has a known target: there is nothing to measure."]
    right = _share(everything.all_right, everything.all_right_interval)
    known = f"of the {everything.judged:,} items that have a known target"
    sentences = [f"{scored}. Deciding at the thresholds below, the model is right about every known label for {right} {known}."]
    kinds = {
        "recall": "catches {} of what should be flagged",
        "precision": "is right in {} of what it flags",
        "false_positive_rate": "flags {} of what should not be flagged",
    }
    means = {metric: everything.macro[metric] for metric in kinds}
    said = [kinds[metric].format(_mean(mean)) for metric, mean in means.items() if mean.value is not None]
    if said:
        labels = {mean.labels for mean in means.values() if mean.value is not None}
        some = "the labels" if labels == {count} else f"{' or '.join(str(n) for n in sorted(labels))} of {count} labels"
        over = "" if count == 1 else f", on average over {some},"
        listed = said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"
        sentences.append(f"At these thresholds it{over} {listed}.")
    if findings.policy is not None and findings.policy.items:
        sentences.append(_decided(findings.policy))
    return sentences


def remarks(findings: Findings) -> list[Remark]:
    """What stands out, the gravest kinds first; every sentence states what was counted."""
    return [
        *_policy(findings),
        *_abstaining(findings),
        *_labels(findings),
        *_slices(findings),
        *_fairness(findings),
        *_functionality(findings),
        *_calibration(findings),
        *_caveats(findings),
    ]


def highlights(findings: Findings) -> list[str]:
    """The sentences of :func:`remarks`."""
    return [remark.text for remark in remarks(findings)]


def _labels(findings: Findings) -> Iterator[Remark]:
    labels = findings.overall.labels
    ranked = {label: n.average_precision for label, n in labels.items() if n.average_precision is not None}
    if len(ranked) > 1:
        weakest = min(ranked, key=lambda label: ranked[label])
        n = labels[weakest]
        between = _between(n.intervals.get("average_precision"))
        text = (
            f"The weakest label is {weakest}, with an average precision of {ranked[weakest]:.3f}{between}; "
            f"guessing gives {n.positive / n.known:.3f}. {n.positive:,} of its {n.known:,} known items are positive."
        )
        yield Remark("Weakest label", text, "labels")
    if idle := [label for label, n in labels.items() if n.positive >= ENOUGH and not n.true_positives + n.false_positives]:
        yield Remark("Never flagged", f"No known item reaches the threshold of {', '.join(idle)}.", "labels")
    if unranked := [f"{label} ({_why(n, findings.enough)})" for label, n in labels.items() if n.average_precision is None]:
        yield Remark("No ranking", f"Without a ranking, and so in no average: {', '.join(unranked)}.", "labels")


def _slices(findings: Findings) -> Iterator[Remark]:
    if findings.worst is None:
        return
    for found in findings.worst.slices[:LISTED]:
        yield Remark("Weak slice", slice_sentence(found), "worst")
    if (more := findings.worst.found - LISTED) > 0:
        said = "1 more is" if more == 1 else f"{more} more are"
        text = f"Of {findings.worst.searched:,} slices searched, {said} worse than the rest."
        yield Remark("Weak slices", text, "worst")


def slice_sentence(found: FoundSlice) -> str:
    """A slice on which decisions are worse than on the rest."""
    where = " and ".join(f"{c.column} is {'not known' if c.value is None else c.value}" for c in found.conditions)
    between = "" if found.interval is None else f" ({points(found.interval.low)} to {points(found.interval.high)})"
    bound = "below 0.001" if found.adjusted_p < 0.001 else f"{found.adjusted_p:.3f}"
    return (
        f"Where {where}, {percent(found.all_right)} of {found.judged:,} items are decided rightly, against {percent(found.rest)} "
        f"of all others: {points(found.difference)} points{between}, corrected p {bound}."
    )


def _fairness(findings: Findings) -> Iterator[Remark]:
    every = gaps(findings)
    apart = sorted((gap for gap in every if gap.least > 0 and gap.worse), key=lambda gap: -gap.least)
    for gap in apart[:LISTED]:
        yield Remark("Unequal treatment", _gap(gap), "fairness")
    if apart:
        either = sum(gap.least > 0 for gap in every)
        chance = (1 - findings.confidence) * len(every)
        text = (
            f"Of {len(every):,} gaps between a subgroup and the rest, {either:,} have an interval without 0, {len(apart):,} of "
            f"them to the subgroup's harm; chance alone would make about {chance:.0f}."
        )
        yield Remark("Gaps in all", text, "fairness")


def _gap(gap: Gap) -> str:
    harm = "fewer" if gap.kind == "recall_gap" else "more"
    what = "positives are caught" if gap.kind == "recall_gap" else "negatives are flagged"
    return (
        f"Of items that speak of {gap.value}, {harm} {what} for {gap.label}: the {GAPS[gap.kind]} differs from the others' by "
        f"{points(gap.size)} points ({points(gap.interval.low)} to {points(gap.interval.high)}; {gap.known:,} known, "
        f"{gap.positive:,} positive)."
    )


def _functionality(findings: Findings) -> Iterator[Remark]:
    if findings.functionality is None:
        return
    cases = [case for case in findings.functionality.cases if case.all_right.value is not None and case.items >= ENOUGH]
    if cases:
        worst = min(cases, key=lambda case: case.all_right.value or 0.0)
        text = (
            f"Of the functional tests, {worst.name} is decided worst: "
            f"{_share(worst.all_right.value or 0.0, worst.all_right.interval)} of {worst.all_right.count:,} items rightly."
        )
        yield Remark("Functional test", text, "functionality")


def _calibration(findings: Findings) -> Iterator[Remark]:
    poor = [
        f"{label} (off by {n.calibration_error:.2f}{_between(n.intervals.get('calibration_error'), 2)} on {n.known:,} items)"
        for label, n in findings.overall.labels.items()
        if n.calibration_error is not None and n.calibration_error > POORLY_CALIBRATED and n.known >= ENOUGH
    ]
    if poor:
        section = "calibration" if findings.calibration else "labels"
        yield Remark("Poorly calibrated", f"Do not read these labels' probabilities as frequencies: {', '.join(poor)}.", section)


def _policy(findings: Findings) -> Iterator[Remark]:
    promises = findings.policy.promises if findings.policy is not None else []
    for shown in promises:
        if shown.kept is False and shown.estimate is not None:
            between = "" if shown.low is None or shown.high is None else f" ({percent(shown.low)} to {percent(shown.high)})"
            group = "" if shown.group is None else f", worst where {shown.rule.column} is {shown.group}"
            text = (
                f"{_upper(shown.rule.place)} promises {shown.rule}; here it is {percent(shown.estimate)}{between}, "
                f"{shown.count:,} of {shown.rows:,}{group}."
            )
            yield Remark("Promise broken", text, "policy")
    if unsure := sum(bool(shown.kept) and not shown.confirmed for shown in promises):
        text = f"{unsure} of {len(promises)} promises hold on these items, but not with the confidence that they ask for."
        yield Remark("Not confirmed", text, "policy")


def _abstaining(findings: Findings) -> Iterator[Remark]:
    for warning in findings.conformal.warnings if findings.conformal is not None else []:
        yield Remark("Other items", f"{_upper(warning)}.", "abstaining")


def _decided(policy: PolicyFindings) -> str:
    """What the policy does with these items."""
    shares = [f"{outcome.action} {percent(outcome.share)}" for outcome in policy.actions if outcome.items]
    kept = sum(bool(shown.confirmed) for shown in policy.promises)
    caught = "" if policy.harm_caught is None else f", and catches {percent(policy.harm_caught)} of the known harm"
    return (
        f"Under the policy {policy.name}, version {policy.version}, these are the actions: {', '.join(shares)} of the items. "
        f"It keeps {kept} of its {len(policy.promises)} promises with the confidence that they ask for{caught}."
    )


def _caveats(findings: Findings) -> Iterator[Remark]:
    if findings.replicates and findings.cluster is not None and findings.units < FEW_UNITS:
        text = f"Intervals rest on {findings.units} units of {findings.cluster} alone, and are too narrow."
        yield Remark("Few units", text, "reading")
    absent = dict.fromkeys([*findings.absent_slices, *(findings.fairness.absent if findings.fairness is not None else [])])
    if absent:
        yield Remark("Absent columns", f"Columns asked for but absent from the predictions: {', '.join(absent)}.", "reading")


def _why(numbers: LabelFindings, enough: int) -> str:
    if not numbers.known:
        return "no item has a known target"
    if not numbers.positive:
        return f"none of its {numbers.known:,} known items is positive"
    if numbers.positive == numbers.known:
        return f"all of its {numbers.known:,} known items are positive"
    return f"{numbers.positive:,} of its {numbers.known:,} known items are positive; {enough} of each class are needed"


def _share(value: float, interval: Interval | None) -> str:
    return percent(value) if interval is None else f"{percent(value)} ({percent(interval[0])} to {percent(interval[1])})"


def _mean(mean: Macro) -> str:
    return _share(mean.value or 0.0, mean.interval)


def _between(interval: Interval | None, digits: int = 3) -> str:
    return "" if interval is None else f" ({interval.low:.{digits}f} to {interval.high:.{digits}f})"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
