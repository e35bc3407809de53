"""Facts about a version of a dataset: what its card, `vigil data show --json` and a run's record of its data print.

All numbers come from columns; media are read only for the sizes of a sample of images, and texts only for the tokens of a sample.
There is no content in the facts, and no name of an author.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.card.counting import (
    Distribution,
    LabelCounts,
    count_presence,
    count_targets,
    count_values,
    distribution,
)
from vigil_data.card.shares import wilson_interval
from vigil_data.card.statements import SourceTerms, Statements, read_statements
from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.leaks import COLUMNS as LEAK_COLUMNS
from vigil_data.dataset.leaks import find_leaks
from vigil_data.dataset.table_schema import COLUMNS, SAMPLING, TARGET
from vigil_data.items import INCLUSION_PROBABILITY, WEIGHT
from vigil_data.progress import ProgressCallback
from vigil_data.settings import TextSettings
from vigil_data.taxonomy import Taxonomy

MAX_VALUES = 50
"""Values of a column that are listed; the others are counted together."""

MAX_PAIRED_LABELS = 40
"""Labels whose co-occurrence is listed, those with the most known targets."""

SAMPLED_IMAGES = 500
"""Items whose images are measured."""

SAMPLED_TEXTS = 2000
"""Items whose texts are tokenized."""

CLUSTER = "cluster"
"""Column of near-duplicates, if there is one."""

_SHOWN_ELSEWHERE = {*COLUMNS.names, *SAMPLING.names, CLUSTER}
_TAKEN_AT_ONCE = 25


@dataclass(frozen=True, slots=True)
class Values:
    """Values of a column.

    Attributes:
        items: value to its number of items, the most frequent first; at most :data:`MAX_VALUES`.
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
        splits: items of each split; those without one are under the empty name.
        taxonomy: name and version of the taxonomy that the labels were compared with; ``None`` without one.
        labels: label to its targets, in the order of the taxonomy.
        missing_labels: labels of the taxonomy that the dataset lacks.
        pairs: labels that some items know both of.
        presence: presence pattern, such as ``text+image``, to its number of items.
        roles: modality to role to number of items with it.
        languages: column ``language``.
        content_types: column ``content_type``.
        sources: source to its items, labels and terms; items without a source are under the empty name.
        other_sources: number of items of sources beyond the first :data:`MAX_VALUES`.
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


def dataset_facts(
    dataset: Dataset,
    *,
    statements: Statements | None = None,
    taxonomy: Taxonomy | None = None,
    text: TextSettings | None = None,
    progress: ProgressCallback | None = None,
) -> DatasetFacts:
    """Collect the facts about a dataset.

    Args:
        dataset: one version of a dataset.
        statements: what people state about the dataset (default: its ``card.yaml``), for licences and citations of sources.
        taxonomy: gives labels their order and description.
        text: how a recipe tokenizes text, for numbers of tokens.
        progress: called with the number of steps that are done.

    Raises:
        UserError: if the tokenizer is missing or invalid, or ``card.yaml`` is invalid.
    """
    stated = read_statements(dataset.path) if statements is None else statements
    steps = iter(range(1, 9))

    def done() -> None:
        if progress is not None:
            progress("collecting facts", next(steps), 8)

    splits = _values(count_values(dataset, ["split"]), "split", most=None)
    sources = _values(count_values(dataset, ["source"]), "source")
    done()
    names = [[*of.items, *([""] if of.unknown else [])] for of in (splits, sources)]
    ordered = list(dataset.labels)
    described = {} if taxonomy is None else {name: of.description for h in taxonomy.heads.values() for name, of in h.labels.items()}
    ordered.sort(key=lambda label: list(described).index(label) if label in described else len(described))
    counts = count_targets(dataset, ordered, *([name or None for name in of] for of in names))
    labels = _labels(ordered, described, counts, *names)
    done()
    presence, roles = count_presence(dataset)
    done()
    leaks = find_leaks(dataset.table([*LEAK_COLUMNS, *(TARGET + label for label in dataset.labels)]))
    done()
    by_author = count_values(dataset, ["author", "split"])
    times = _times(dataset)
    done()
    sizes = {name: _distribution(count_values(dataset, [name]), name) for name in ("characters", "images")}
    seconds = _seconds(dataset)
    done()
    tokens = None if text is None or sizes["characters"] is None else _tokens(dataset, text)
    images = None if sizes["images"] is None else _images(dataset, sizes["images"])
    done()
    versions = _history(dataset)
    facts = DatasetFacts(
        name=dataset.path.resolve().name,
        version=dataset.version,
        written=next(version.written for version in versions if version.version == dataset.version),
        items=len(dataset),
        splits=dict(zip(names[0], counts.cells_GS.sum(axis=1).tolist(), strict=False)),
        taxonomy=None if taxonomy is None else f"{taxonomy.name} {taxonomy.version}",
        labels=labels,
        missing_labels=[label for label in described if label not in labels],
        pairs=_pairs(ordered, counts),
        presence=presence,
        roles=roles,
        languages=_values(count_values(dataset, ["language"]), "language"),
        content_types=_values(count_values(dataset, ["content_type"]), "content_type"),
        sources=_sources(names[1], counts, labels, stated),
        other_sources=sources.others,
        authors=_authors(by_author),
        characters=sizes["characters"],
        tokens=tokens,
        images=images,
        seconds=seconds,
        times=times,
        leaks=LeakFacts(leaks.contents, leaks.items, leaks.opposite, leaks.shared),
        clusters=_clusters(dataset),
        quarantine=_quarantine(dataset),
        sampling=_sampling(dataset),
        columns=_columns(dataset),
        history=versions,
    )
    done()
    return facts


def _values(counted: pa.Table, column: str, most: int | None = MAX_VALUES) -> Values:
    known = counted.filter(pc.is_valid(counted[column]))
    pairs = zip(known[column].to_pylist(), known["count"].to_pylist(), strict=True)
    items = dict(islice(pairs, most))
    total, known_items = (pc.sum(of["count"]).as_py() or 0 for of in (counted, known))
    return Values(items, known_items - sum(items.values()), total - known_items, known.num_rows)


def _labels(
    labels: Sequence[str], described: Mapping[str, str], counts: LabelCounts, splits: Sequence[str], sources: Sequence[str]
) -> dict[str, LabelFacts]:
    found = {}
    for place, label in enumerate(labels):
        numbers_3GS = np.stack([counts.cells_GS, counts.known_LGS[place], counts.positive_LGS[place]])
        by_split, by_source = numbers_3GS.sum(axis=2).T.tolist(), numbers_3GS.sum(axis=1).T.tolist()
        found[label] = LabelFacts(
            described.get(label, ""),
            Prevalence.of(*numbers_3GS.sum(axis=(1, 2)).tolist()),
            int(counts.soft_L[place]),
            {name: Prevalence.of(*of) for name, of in zip(splits, by_split, strict=False)},
            {name: Prevalence.of(*of) for name, of in zip(sources, by_source, strict=False) if of[1]},
        )
    return found


def _pairs(labels: Sequence[str], counts: LabelCounts) -> list[LabelPair]:
    known_L = np.diag(counts.both_known_LL)
    chosen = sorted(np.argsort(-known_L, kind="stable")[:MAX_PAIRED_LABELS].tolist())
    found = []
    for place, one in enumerate(chosen):
        for other in chosen[place + 1 :]:
            known, both = int(counts.both_known_LL[one, other]), int(counts.both_LL[one, other])
            if known:
                first, second = int(counts.first_LL[one, other]), int(counts.first_LL[other, one])
                found.append(LabelPair(labels[one], labels[other], known, both, first, second, phi(known, both, first, second)))
    return found


def phi(known: int, both: int, first: int, second: int) -> float | None:
    """Return the correlation of two yes-or-no values; ``None`` if one of them is constant.

    Args:
        known: number of pairs.
        both: pairs of two yes.
        first: pairs whose first value is yes.
        second: pairs whose second value is yes.
    """
    spread = first * (known - first) * second * (known - second)
    return float((known * both - first * second) / np.sqrt(float(spread))) if spread else None


def _sources(
    names: Sequence[str], counts: LabelCounts, labels: Mapping[str, LabelFacts], statements: Statements
) -> dict[str, SourceFacts]:
    found = {}
    for name, items in zip(names, counts.cells_GS.sum(axis=0).tolist(), strict=False):
        terms = statements.sources.get(name) or SourceTerms()
        known = [label for label, of in labels.items() if name in of.sources]
        found[name] = SourceFacts(items, known, terms.licence or None, terms.citation or None, terms.url or None)
    return found


def _authors(counted: pa.Table) -> AuthorFacts | None:
    known = counted.filter(pc.is_valid(counted["author"]))
    if not known.num_rows:
        return None
    unknown = (pc.sum(counted["count"]).as_py() or 0) - pc.sum(known["count"]).as_py()
    items = known.group_by("author").aggregate([("count", "sum"), ("split", "count")])
    each = np.sort(items["count_sum"].to_numpy())[::-1]
    several = int((items["split_count"].to_numpy() > 1).sum())
    return AuthorFacts(len(each), unknown, float(each[0] / each.sum()), float(each[:10].sum() / each.sum()), several)


def _times(dataset: Dataset) -> TimeFacts | None:
    months: dict[str, int] = {}
    first, last, unknown = np.datetime64("NaT", "us"), np.datetime64("NaT", "us"), 0
    for batch in dataset.batches(["created_at"]):
        known = batch["created_at"].drop_null()
        unknown += batch.num_rows - len(known)
        times_B = known.cast(pa.int64()).to_numpy().view("datetime64[us]")
        if len(times_B):
            first, last = np.fmin(first, times_B.min()), np.fmax(last, times_B.max())
            for month, count in zip(*np.unique(times_B.astype("datetime64[M]"), return_counts=True), strict=True):
                months[str(month)] = months.get(str(month), 0) + int(count)
    if not months:
        return None
    return TimeFacts(*(f"{np.datetime_as_string(time, 's')}Z" for time in (first, last)), unknown, dict(sorted(months.items())))


def _distribution(counted: pa.Table, column: str) -> Distribution | None:
    known = counted.filter(pc.is_valid(counted[column]))
    return distribution(known[column].to_numpy().astype(np.float64), known["count"].to_numpy())


def _seconds(dataset: Dataset) -> Distribution | None:
    """Return the distribution of durations, counted in hundredths of a second so that memory does not grow with rows."""
    return _binned(dataset, "seconds", lambda seconds_B: np.where(seconds_B > 0, np.maximum(seconds_B.round(2), 0.01), 0.0))[0]


def _binned(
    dataset: Dataset, column: str, rounded: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> tuple[Distribution | None, int]:
    """Return the distribution of a column's rounded values, and the number of its nulls."""
    counts: dict[float, int] = {}
    nulls = 0
    for batch in dataset.batches([column]):
        known = batch[column].drop_null()
        nulls += batch.num_rows - len(known)
        for value, count in zip(*np.unique(rounded(known.to_numpy().astype(np.float64)), return_counts=True), strict=True):
            counts[float(value)] = counts.get(float(value), 0) + int(count)
    return distribution(np.array(list(counts), np.float64), np.array(list(counts.values()), np.int64)), nulls


def _sample(dataset: Dataset, condition: str, most: int) -> NDArray[np.int64]:
    rows = dataset.rows(where=condition)
    return rows if len(rows) <= most else np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


def _images(dataset: Dataset, per_item: Distribution) -> ImageFacts:
    from vigil_data.decode.image import size_of
    from vigil_data.errors import MediaError

    sizes = []
    rows = _sample(dataset, "images > 0", SAMPLED_IMAGES)
    for start in range(0, len(rows), _TAKEN_AT_ONCE):
        for images in dataset.table(["image"], rows[start : start + _TAKEN_AT_ONCE])["image"].to_pylist():
            for image in images or ():
                try:
                    sizes.append(size_of(image))
                except MediaError:  # the import accepts only headers that can be read
                    continue
    sizes_N2 = np.array(sizes, np.float64).reshape(-1, 2)
    return ImageFacts(per_item, len(sizes), distribution(sizes_N2[:, 0]), distribution(sizes_N2[:, 1]))


def _tokens(dataset: Dataset, spec: TextSettings) -> TokenFacts:
    from vigil_data.decode.text import load_normalizer, load_tokenizer, tokenizer_file

    tokenizer = load_tokenizer(spec)
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    tokenizer.no_truncation()
    normalize = load_normalizer(spec)
    rows = _sample(dataset, "characters > 0", SAMPLED_TEXTS)
    counts, longer = [], 0
    for texts in dataset.table(["text"], rows)["text"].to_pylist():
        encoded = tokenizer.encode_batch([normalize(text).text for text in texts or ()], add_special_tokens=False)
        lengths = [len(one.ids) for one in encoded]
        counts.append(sum(lengths))
        longer += max(lengths, default=0) > spec.max_tokens - special
    name = str(tokenizer_file(spec.tokenizer))
    return TokenFacts(name, len(rows), distribution(np.array(counts, np.float64)), spec.max_tokens, longer)


def _clusters(dataset: Dataset) -> ClusterFacts | None:
    if CLUSTER not in dataset.schema.names:
        return None
    counted = count_values(dataset, [CLUSTER, "split"])
    counted = counted.filter(pc.is_valid(counted[CLUSTER]))
    each = counted.group_by(CLUSTER).aggregate([("count", "sum"), ("split", "count")])
    items, splits = each["count_sum"].to_numpy(), each["split_count"].to_numpy()
    several = items > 1
    return ClusterFacts(
        int(several.sum()), int(items[several].sum()), int(items[several].max(initial=0)), int((splits[several] > 1).sum())
    )


def _quarantine(dataset: Dataset) -> list[Refused]:
    refused = dataset.quarantine().select(["modality", "reason"])
    counted = refused.group_by(["modality", "reason"]).aggregate([([], "count_all")])
    rows = counted.sort_by([("count_all", "descending"), ("reason", "ascending")]).to_pylist()
    return [Refused(row["modality"], row["reason"], row["count_all"]) for row in rows]


def _sampling(dataset: Dataset) -> SamplingFacts | None:
    present = [name for name in SAMPLING.names if name in dataset.schema.names]
    if not present:
        return None
    probability, without = None, len(dataset)
    if INCLUSION_PROBABILITY in present:
        probability, without = _binned(dataset, INCLUSION_PROBABILITY, lambda p_B: np.maximum(p_B.round(6), 1e-6))
    total = squares = 0.0
    if WEIGHT in present:
        for batch in dataset.batches([WEIGHT]):
            weights = batch[WEIGHT].drop_null().to_numpy()
            total, squares = total + float(weights.sum()), squares + float((weights**2).sum())
    known = total > 0
    return SamplingFacts(probability, without, total if known else None, total**2 / squares if known else None)


def _columns(dataset: Dataset) -> dict[str, ColumnFacts]:
    others = [name for name in dataset.columns if name not in _SHOWN_ELSEWHERE]
    known = dict.fromkeys(others, 0)
    for batch in dataset.batches(others) if others else ():
        for name in others:
            known[name] += batch.num_rows - batch[name].null_count
    return {name: ColumnFacts(str(dataset.schema.field(name).type), known[name]) for name in others}


def _history(dataset: Dataset) -> list[VersionFacts]:
    return [VersionFacts(of["version"], _iso(of["timestamp"]), of["rows"], "", "", {}) for of in reversed(dataset.versions())]


def _iso(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds")
