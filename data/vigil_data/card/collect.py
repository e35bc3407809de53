"""Collection of the facts about a dataset, batch by batch.

All numbers come from columns; media are read only for the sizes of a sample of images, and texts only for the tokens of a sample.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from itertools import islice
from pathlib import Path

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
from vigil_data.card.facts import (
    AuthorFacts,
    ClusterFacts,
    ColumnFacts,
    DatasetFacts,
    ImageFacts,
    LabelFacts,
    LabelPair,
    LeakFacts,
    Prevalence,
    Refused,
    SamplingFacts,
    SourceFacts,
    TimeFacts,
    TokenFacts,
    Values,
    VersionFacts,
)
from vigil_data.card.statements import SourceTerms, Statements, read_statements
from vigil_data.dataset import history
from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.table_schema import COLUMNS, SAMPLING
from vigil_data.importers.source_schema import load_source, shipped_sources
from vigil_data.items import INCLUSION_PROBABILITY, WEIGHT
from vigil_data.progress import ProgressCallback
from vigil_data.quality.duplicates import CLUSTER
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

USUAL_SPLITS = ("train", "validation", "test")
"""Splits that come first, before others by size."""

_SHOWN_ELSEWHERE = {*COLUMNS.names, *SAMPLING.names, CLUSTER}
_TAKEN_AT_ONCE = 25


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
        statements: what people state about the dataset (default: its ``card.yaml``), for licences and citations of sources
            beyond those that are shipped.
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
    names[0] = list(usual_order(dict.fromkeys(names[0], 0)))
    ordered = list(dataset.labels)
    described = (
        {} if taxonomy is None else {name: of.description for h in taxonomy.heads.values() for name, of in h.labels.items()}
    )
    ordered.sort(key=lambda label: list(described).index(label) if label in described else len(described))
    counts = count_targets(dataset, ordered, *([name or None for name in of] for of in names))
    labels = _labels(ordered, described, counts, *names)
    done()
    presence, roles = count_presence(dataset)
    done()
    leaks = dataset.leaks()
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


def usual_order(splits: Mapping[str, int]) -> dict[str, int]:
    """Return the splits with :data:`USUAL_SPLITS` first."""
    usual = [split for split in USUAL_SPLITS if split in splits]
    return {split: splits[split] for split in (*usual, *(split for split in splits if split not in usual))}


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
        terms = statements.sources.get(name) or _published_terms(name)
        known = [label for label, of in labels.items() if name in of.sources]
        found[name] = SourceFacts(items, known, terms.licence or None, terms.citation or None, terms.url or None)
    return found


def _published_terms(name: str) -> SourceTerms:
    """Return what the page of a shipped source says."""
    if name not in shipped_sources():
        return SourceTerms()
    source = load_source(name)
    return SourceTerms(licence=source.licence, citation=source.citation, url=source.url)


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
    earliest, latest = (f"{np.datetime_as_string(time, 's')}+00:00" for time in (first, last))
    return TimeFacts(earliest, latest, unknown, dict(sorted(months.items())))


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
    from vigil_data.decode.text import load_normalizer, load_tokenizer, special_tokens_of_passage

    tokenizer = load_tokenizer(spec)
    special = special_tokens_of_passage(tokenizer, spec)
    tokenizer.no_truncation()
    normalize = load_normalizer(spec)
    rows = _sample(dataset, "characters > 0", SAMPLED_TEXTS)
    counts, longer = [], 0
    for texts in dataset.table(["text"], rows)["text"].to_pylist():
        encoded = tokenizer.encode_batch([normalize(text).text for text in texts or ()], add_special_tokens=False)
        lengths = [len(one.ids) for one in encoded]
        counts.append(sum(lengths))
        longer += max(lengths, default=0) > spec.max_tokens - special
    named = spec.tokenizer
    name = Path(named).name if isinstance(named, str) else "/".join(filter(None, named.model_dump(exclude={"kind"}).values()))
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
    found = []
    for entry in reversed(history.read(dataset.path)):
        operation, reason, counts = (
            ("", "", {}) if entry.change is None else (entry.change.operation, entry.change.reason, dict(entry.change.counts))
        )
        written = entry.when.astimezone(UTC).isoformat(timespec="seconds")
        found.append(VersionFacts(entry.version, written, entry.rows, operation, reason, counts))
    return found
