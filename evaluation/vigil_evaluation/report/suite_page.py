"""Results of a functional test suite as one self-contained HTML page, and their summary in sentences."""

from collections.abc import Iterator

from vigil_data.filesystem import StrPath
from vigil_evaluation.report.rendering import format_percent, render_page
from vigil_evaluation.report.summary import MAX_LISTED, MIN_ITEMS_FOR_REMARK, Remark, share_with_interval
from vigil_evaluation.stats.proportions import Proportion
from vigil_evaluation.suites.results import FunctionalTestResults, GroupAccuracyMap, SuiteResults

COIN_TOSS = 0.5
"""Accuracy below which a functional test is named."""


def render_suite_page(suite: SuiteResults, to: StrPath) -> None:
    """Write the page of a suite atomically.

    Args:
        suite: a model's results on the suite.
        to: HTML file.
    """
    summary, remarks = suite_sentences(suite), suite_remarks(suite)
    render_page("suite.html.jinja", to, suite=suite, results=suite.findings, summary=summary, remarks=remarks)


def suite_sentences(suite: SuiteResults) -> list[str]:
    """Return the main results of a suite in sentences that require no knowledge of metrics."""
    found = suite.findings
    tests, labels = _counted(len(found.cases), "functionality", "functionalities"), _counted(len(found.labels), "label", "labels")
    count, hits = (sum(getattr(case.all_right, name) for case in found.cases) for name in ("count", "hits"))
    sentences = [f"{found.items:,} items test {tests} for {labels}."]
    if count:
        known = f"{hits:,} of the {count:,} items with a known target have no wrong decision"
        sentences[0] += f" {known}, {format_percent(hits / count)}."
    judged = [case for case in found.cases if case.all_right.value is not None]
    if len(judged) > 1:
        low, high = (end(judged, key=lambda case: case.all_right.value or 0.0) for end in (min, max))
        sentences.append(
            f"The lowest accuracy is that of {low.name}, {_share(low.all_right)}; "
            f"the highest that of {high.name}, {_share(high.all_right)}."
        )
    return [*sentences, *_pair_sentences(found)]


def suite_remarks(suite: SuiteResults) -> list[Remark]:
    """Return what stands out, the most serious kinds first; every sentence states counts."""
    found = suite.findings
    return [*_failed_tests(found), *(remark for by in found.targets for remark in _unequal_groups(found, by)), *_caveats(suite)]


def _pair_sentences(found: FunctionalTestResults) -> Iterator[str]:
    if found.pairs is None:
        return
    labels = found.pairs.overall.labels.items()
    if changed := {label: n.changes for label, n in labels if n.changes.value is not None}:
        worst = max(changed, key=lambda label: changed[label].value or 0.0)
        yield (
            f"Of minimal pairs whose label should stay, {_share(changed[worst], 'pairs')} change the decision"
            f"{_of(worst, changed)}."
        )
    if followed := {label: n.follows for label, n in labels if n.follows.value is not None}:
        worst = min(followed, key=lambda label: followed[label].value or 0.0)
        yield (
            f"Of minimal pairs whose label should change, {_share(followed[worst], 'pairs')} are decided correctly on both sides"
            f"{_of(worst, followed)}."
        )


def _of(label: str, labels: dict[str, Proportion]) -> str:
    return f" for {label}, the weakest of {len(labels)} labels" if len(labels) > 1 else ""


def _failed_tests(found: FunctionalTestResults) -> Iterator[Remark]:
    """Yield the tests and labels that are decided worse than by a coin toss, the lowest accuracy first."""
    failed = [
        (case.name, label, result.accuracy)
        for case in found.cases
        for label, result in case.labels.items()
        if result.accuracy.value is not None
        and result.accuracy.value < COIN_TOSS
        and result.accuracy.count >= MIN_ITEMS_FOR_REMARK
    ]
    failed.sort(key=lambda entry: entry[2].value or 0.0)
    for name, label, accuracy in failed[:MAX_LISTED]:
        text = f"{name}: {_share(accuracy)} are decided correctly for {label}, worse than a coin toss."
        yield Remark("Failed test", text, "tests")
    if (more := len(failed) - MAX_LISTED) > 0:
        text = f"{more} more of all combinations of test and label {'is' if more == 1 else 'are'} worse than a coin toss."
        yield Remark("Failed tests", text, "tests")


def _unequal_groups(found: FunctionalTestResults, by: GroupAccuracyMap) -> Iterator[Remark]:
    """Yield, for each label, the group with the lowest accuracy, if its interval lies below that of the best group."""
    for label in found.labels:
        groups = [(value, share) for value, share in zip(by.values, by.overall[label], strict=True) if share.interval is not None]
        groups = [(value, share) for value, share in groups if share.count >= MIN_ITEMS_FOR_REMARK]
        if len(groups) < 2:
            continue
        worst, best = (end(groups, key=lambda group: group[1].value or 0.0) for end in (min, max))
        if worst[1].interval is not None and best[1].interval is not None and worst[1].interval.high < best[1].interval.low:
            text = (
                f"{label} is decided correctly for {_share(worst[1])} where {by.column} is {worst[0]}, "
                f"and for {_share(best[1])} where it is {best[0]}, the largest difference among {len(groups)} groups."
            )
            yield Remark("Unequal groups", text, "groups")


def _caveats(suite: SuiteResults) -> Iterator[Remark]:
    found = suite.findings
    if suite.skipped:
        yield Remark("Skipped labels", f"The model does not have these labels of the suite: {', '.join(suite.skipped)}.", "tests")
    if few := [case.name for case in found.cases if case.all_right.value is None]:
        listed = f"{', '.join(few[:MAX_LISTED])}{f' and {len(few) - MAX_LISTED} more' if len(few) > MAX_LISTED else ''}"
        yield Remark("Too few items", f"Tests with fewer than {found.enough} known targets have no accuracy: {listed}.", "tests")
    if found.pairs is not None and found.pairs.alone:
        text = f"{_counted(found.pairs.alone, 'item names', 'items name')} a counterpart that is absent."
        yield Remark("Incomplete pairs", text, "minimal-pairs")


def _share(share: Proportion, unit: str = "items") -> str:
    return f"{share_with_interval(share.value or 0.0, share.interval)} of {share.count:,} {unit}"


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"
