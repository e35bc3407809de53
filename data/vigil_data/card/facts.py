"""Facts about a version of a dataset: what its card, `vigil data show --json` and a run's record of its data print.

There is no content in the facts, and no name of an author. :func:`vigil_data.card.collect.dataset_facts` collects them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vigil_data.card.counting import Distribution
from vigil_data.card.shares import wilson_interval


@dataclass(frozen=True, slots=True)
class Values:
    """Values of a column.

    Attributes:
        items: value to its number of items, the most frequent first; at most :data:`vigil_data.card.collect.MAX_VALUES`.
        others: number of items with another value.
        unknown: number of items without a value.
        distinct: number of different values.
    """

    items: Mapping[str, int]
    others: int
    unknown: int
    distinct: int


@dataclass(frozen=True, slots=True)
class Prevalence:
    """Targets of a label among some items.

    Attributes:
        items: number of items.
        known: number of known targets.
        positive: number of targets of at least 0.5.
        prevalence: share of the known targets that are positive; ``None`` if none is known.
        interval: its Wilson interval, 95 %.
    """

    items: int
    known: int
    positive: int
    prevalence: float | None
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, items: int, known: int, positive: int) -> "Prevalence":
        """Return the prevalence with its interval."""
        if not known:
            return cls(items, known, positive, None, None)
        return cls(items, known, positive, positive / known, wilson_interval(positive, known))


@dataclass(frozen=True, slots=True)
class LabelFacts:
    """A label.

    Attributes:
        description: as the taxonomy states it; empty without one.
        all: its targets in all items.
        soft: number of targets between 0 and 1, such as shares of reviewers.
        splits: its targets in each split; the items without one are under the empty name.
        sources: its targets in each source that knows it.
    """

    description: str
    all: Prevalence
    soft: int
    splits: Mapping[str, Prevalence]
    sources: Mapping[str, Prevalence]


@dataclass(frozen=True, slots=True)
class LabelPair:
    """Two labels in the items that know both.

    Attributes:
        first: one label.
        second: the other.
        known: number of items that know both.
        both: number of items in which both are positive.
        first_positive: number of items in which the first is positive.
        second_positive: number of items in which the second is positive.
        phi: their correlation; ``None`` if one of them has one value only.
    """

    first: str
    second: str
    known: int
    both: int
    first_positive: int
    second_positive: int
    phi: float | None


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """A source of items.

    Attributes:
        items: number of items.
        labels: labels that it knows.
        licence: as its authors state it; ``None`` if not known.
        citation: how its authors ask to be cited.
        url: where it comes from.
    """

    items: int
    labels: Sequence[str]
    licence: str | None
    citation: str | None
    url: str | None


@dataclass(frozen=True, slots=True)
class AuthorFacts:
    """Authors, without their names.

    Attributes:
        authors: number of authors.
        unknown: number of items without an author.
        top_share: share of the items with an author that the most frequent one wrote.
        top_ten_share: share that the ten most frequent ones wrote.
        several_splits: number of authors with items in more than one split.
    """

    authors: int
    unknown: int
    top_share: float
    top_ten_share: float
    several_splits: int


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """Tokens of a sample of the items with text, under a recipe's tokenizer and normalization.

    Attributes:
        tokenizer: the tokenizer.
        sampled: number of items.
        tokens: tokens of an item's texts together, without special ones.
        max_tokens: length of a passage.
        longer: number of sampled items with a text that needs more than one passage.
    """

    tokenizer: str
    sampled: int
    tokens: Distribution | None
    max_tokens: int
    longer: int


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Images.

    Attributes:
        per_item: number of images of the items that have one.
        sampled: number of images that were measured.
        width: width of the sampled images in pixels.
        height: their height.
    """

    per_item: Distribution
    sampled: int
    width: Distribution | None
    height: Distribution | None


@dataclass(frozen=True, slots=True)
class TimeFacts:
    """Times at which items were created.

    Attributes:
        first: the earliest, ISO 8601.
        last: the latest.
        unknown: number of items without a time.
        months: month, such as ``2026-11``, to its number of items, in order; only months with items.
    """

    first: str
    last: str
    unknown: int
    months: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class LeakFacts:
    """Content in more than one split; see :class:`vigil_data.dataset.leaks.Leaks`."""

    contents: int
    items: int
    opposite: int
    shared: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """Clusters of near-duplicates.

    Attributes:
        clusters: number of clusters with at least two items.
        items: number of items in them.
        largest: number of items of the largest.
        several_splits: number of clusters in more than one split.
    """

    clusters: int
    items: int
    largest: int
    several_splits: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Quarantined items of one modality and reason."""

    modality: str
    reason: str
    items: int


@dataclass(frozen=True, slots=True)
class SamplingFacts:
    """How the items were chosen, if not at random.

    Attributes:
        probability: distribution of the probabilities of inclusion.
        without_probability: number of items without one.
        weight: sum of the weights, the number of items of traffic that the items stand for.
        effective: number of equally weighted items that would be as informative (Kish).
    """

    probability: Distribution | None
    without_probability: int
    weight: float | None
    effective: float | None


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """Another column: its type, and its number of items with a value."""

    type: str
    known: int


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """A version of the dataset: when it was written, its number of items, what was done, why, and to how many items.

    Who did it is not part of a card, which may be published; `vigil data log` prints it.
    """

    version: int
    written: str
    items: int
    operation: str
    reason: str
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """Facts about one version of a dataset.

    Attributes:
        name: name of the dataset's folder.
        version: the version.
        written: when it was written, ISO 8601.
        items: number of items.
        splits: items of each split, train, validation and test first; those without one are under the empty name.
        taxonomy: name and version of the taxonomy that the labels were compared with; ``None`` without one.
        labels: label to its targets, in the order of the taxonomy.
        missing_labels: labels of the taxonomy that the dataset lacks.
        pairs: labels that some items know both of.
        presence: presence pattern, such as ``text+image``, to its number of items.
        roles: modality to role to number of items with it.
        languages: column ``language``.
        content_types: column ``content_type``.
        sources: source to its items, labels and terms; items without a source are under the empty name.
        other_sources: number of items of sources beyond the first :data:`vigil_data.card.collect.MAX_VALUES`.
        authors: ``None`` if no item has an author.
        characters: characters of the items with text.
        tokens: ``None`` unless asked for.
        images: ``None`` without images.
        seconds: seconds of the items with audio.
        times: ``None`` if no item has a time.
        leaks: content in more than one split.
        clusters: ``None`` without a column ``cluster``.
        quarantine: items that were refused.
        sampling: ``None`` without sampling columns.
        columns: other columns.
        history: all versions, the newest first.
    """

    name: str
    version: int
    written: str
    items: int
    splits: Mapping[str, int]
    taxonomy: str | None
    labels: Mapping[str, LabelFacts]
    missing_labels: Sequence[str]
    pairs: Sequence[LabelPair]
    presence: Mapping[str, int]
    roles: Mapping[str, Mapping[str, int]]
    languages: Values
    content_types: Values
    sources: Mapping[str, SourceFacts]
    other_sources: int
    authors: AuthorFacts | None
    characters: Distribution | None
    tokens: TokenFacts | None
    images: ImageFacts | None
    seconds: Distribution | None
    times: TimeFacts | None
    leaks: LeakFacts
    clusters: ClusterFacts | None
    quarantine: Sequence[Refused]
    sampling: SamplingFacts | None
    columns: Mapping[str, ColumnFacts]
    history: Sequence[VersionFacts]


def facts_to_json(facts: DatasetFacts) -> dict[str, Any]:
    """Return the facts as values that JSON can hold."""
    return asdict(facts)
