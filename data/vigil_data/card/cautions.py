"""What a user of a dataset should be careful about, as sentences with counts."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vigil_data.card.facts import DatasetFacts, Prevalence
from vigil_data.card.shares import wilson_interval

MIN_TEST_TARGETS = 50
"""Positives, and negatives, of a label in the test split below which its metrics are too uncertain to decide anything."""

MIN_KNOWN_OF_SOURCE = 20
"""Known targets of a source from which it is remarkable that all of them are equal."""

MAX_LISTED = 6


class Caution(NamedTuple):
    """Something to be careful about.

    Attributes:
        section: section of the card with the details.
        topic: subject in a word or two.
        text: one sentence.
    """

    section: str
    topic: str
    text: str


def cautions(facts: DatasetFacts) -> list[Caution]:
    """Return what to be careful about, the most serious kinds first."""
    if not facts.items:
        return [Caution("content", "Empty", "The dataset has no items.")]
    return [*_leaks(facts), *_labels(facts), *_test(facts), *_shortcuts(facts), *_sources(facts), *_quarantine(facts)]


def _leaks(facts: DatasetFacts) -> Iterator[Caution]:
    leaks = facts.leaks
    if leaks.opposite:
        yield Caution(
            "splits",
            "Opposite labels",
            f"{_count(leaks.opposite, 'content is', 'contents are')} positive in one split and negative in another.",
        )
    if leaks.contents:
        yield Caution(
            "splits",
            "Leaks",
            f"{_count(leaks.contents, 'content is', 'contents are')} in more than one split, in {leaks.items:,} items; a test "
            "counts as correct what a model learned by heart.",
        )
    if leaks.shared:
        parts = ", ".join(f"{count:,} of {modality}" for modality, count in leaks.shared.items())
        yield Caution("splits", "Shared parts", f"Parts of items are in more than one split: {parts}.")
    if facts.clusters is not None and facts.clusters.several_splits:
        number = _count(facts.clusters.several_splits, "cluster of near-duplicates is", "clusters of near-duplicates are")
        yield Caution("splits", "Near-duplicates", f"{number} in more than one split.")
    if facts.authors is not None and facts.authors.several_splits:
        share = facts.authors.several_splits / facts.authors.authors
        number = _count(facts.authors.several_splits, "author has", "authors have")
        yield Caution(
            "content",
            "Authors",
            f"{number} items in more than one split ({share:.1%}); a model can recognize a writer instead of the label.",
        )


def _labels(facts: DatasetFacts) -> Iterator[Caution]:
    if not facts.labels:
        yield Caution("labels", "No labels", "No item has a target.")
    kinds = {
        "Missing labels": list(facts.missing_labels),
        "No known target": [name for name, of in facts.labels.items() if not of.all.known],
        "No positives": [name for name, of in facts.labels.items() if of.all.known and not of.all.positive],
        "No negatives": [name for name, of in facts.labels.items() if of.all.known and of.all.positive == of.all.known],
    }
    for topic, names in kinds.items():
        if names:
            why = "no column of targets" if topic == "Missing labels" else "a model cannot learn what it never sees both sides of"
            yield Caution("labels", topic, f"{_listed(names)}: {why}.")


def _test(facts: DatasetFacts) -> Iterator[Caution]:
    if not any(facts.splits):
        yield Caution("splits", "No splits", "No item has a split; training needs train and validation, measuring needs test.")
        return
    if "test" not in facts.splits:
        yield Caution("splits", "No test split", "No item is in the split test; a result on other splits is not a measurement.")
        return
    unknown = [name for name, of in facts.labels.items() if of.all.known and not of.splits["test"].known]
    if unknown:
        yield Caution("labels", "Not in the test split", f"No target is known in the test split for {_listed(unknown)}.")
    few = {name: _fewest(of.splits["test"]) for name, of in facts.labels.items() if of.splits["test"].known}
    few = {name: number for name, number in sorted(few.items(), key=lambda pair: pair[1]) if number < MIN_TEST_TARGETS}
    if few:
        number = min(few.values())
        example = ""
        if number:
            low, high = wilson_interval(number / 2, number)
            example = f"; a share of one half of {number} has a 95% interval from {low:.0%} to {high:.0%}"
        parts = [f"{name} ({count})" for name, count in few.items()]
        text = f"Fewer than {MIN_TEST_TARGETS} positives or negatives in the test split: {_listed(parts)}{example}."
        yield Caution("labels", "Small test split", text)


def _fewest(of: Prevalence) -> int:
    return min(of.positive, of.known - of.positive)


def _shortcuts(facts: DatasetFacts) -> Iterator[Caution]:
    """Yield labels that a model can predict from the source of an item."""
    if len(facts.sources) < 2:
        return
    alone: dict[str, list[str]] = {}
    for label, of in facts.labels.items():
        if len(of.sources) == 1:
            alone.setdefault(next(iter(of.sources)), []).append(label)
    for source, labels in alone.items():
        yield Caution(
            "sources",
            "One source only",
            f"{_listed(labels)} {'is' if len(labels) == 1 else 'are'} known in {_name(source)} only; what a model learns about "
            "other sources is extrapolation, and it can recognize the source instead of the label.",
        )
    for label, of in facts.labels.items():
        constant = {
            source: "positive" if known.positive else "negative"
            for source, known in of.sources.items()
            if len(of.sources) > 1 and known.known >= MIN_KNOWN_OF_SOURCE and known.positive in {0, known.known}
        }
        if constant:
            parts = [f"{_name(source)} ({side})" for source, side in constant.items()]
            yield Caution(
                "sources",
                "Source gives it away",
                f"All known targets of {label} are equal in {_listed(parts)}; a model can "
                "recognize the source instead of the label.",
            )


def _sources(facts: DatasetFacts) -> Iterator[Caution]:
    missing = [_name(name) for name, of in facts.sources.items() if of.licence is None]
    if missing:
        yield Caution("sources", "No licence", f"No licence is stated for {_listed(missing)}.")


def _quarantine(facts: DatasetFacts) -> Iterator[Caution]:
    if refused := sum(of.items for of in facts.quarantine):
        share = refused / (facts.items + refused)
        number = _count(refused, "item is", "items are")
        yield Caution("versions", "Quarantine", f"{number} in quarantine, {share:.1%}; they are in no split.")


def _name(source: str) -> str:
    return source or "items without a source"


def _count(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
