"""Examples of an alarm: ids of the decisions that contribute most to it, found in one pass over the days of the alarms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_monitoring.drift.embeddings import EMBEDDING, embeddings_of, random_features
from vigil_monitoring.drift.settings import EXAMPLES
from vigil_monitoring.drift.summaries import ALL, UNKNOWN
from vigil_monitoring.traffic import Traffic
from vigil_serving.traffic.schema import PROBABILITY

Floats = NDArray[np.float64]


@dataclass(slots=True)
class ExampleSearch:
    """Which decisions of a day contribute to an alarm.

    Attributes:
        day: day on which they are looked for.
        slice: name of the slice.
        label: label whose probability counts, with ``edges`` and ``by_bin``.
        edges: edges of its histogram.
        by_bin: contribution of a decision in each bin; minus infinity for none.
        column: column whose category counts, with ``by_category``.
        by_category: contribution of a decision of each category; others have none, unless ``others`` is given.
        others: contribution of all other categories.
        feature: feature of the embeddings that counts, negative to count how small it is; from 1.
        errors: whether decisions with an error count.
        found: contribution and id of the best ones so far.
    """

    day: date
    slice: str = ALL
    label: str | None = None
    edges: Sequence[float] = ()
    by_bin: Floats | None = None
    column: str | None = None
    by_category: Mapping[str, float] = field(default_factory=dict)
    others: float = -np.inf
    feature: int = 0
    errors: bool = False
    found: list[tuple[float, str]] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """Columns that are read."""
        names = [] if self.slice == ALL else [self.slice.split("=", 1)[0]]
        names += [PROBABILITY + self.label] if self.label is not None else []
        names += [self.column] if self.column is not None else []
        return [*names, *([EMBEDDING] if self.feature else []), *(["error"] if self.errors else [])]


def find_examples(traffic: Traffic, searches: Sequence[ExampleSearch]) -> list[list[str]]:
    """Return the ids of each search, those that contribute most first; of equal ones a random choice, the same on every run."""
    for day in sorted({search.day for search in searches} & set(traffic.days)):
        wanted = [search for search in searches if search.day == day]
        columns = list(dict.fromkeys(["id", *(name for search in wanted for name in search.columns)]))
        random = np.random.default_rng(day.toordinal())
        for batch in traffic.batches(columns, [day]):
            tie_N = random.random(batch.num_rows) * 1e-6
            for search in wanted:
                _search(search, batch, tie_N)
    return [list(dict.fromkeys(name for _, name in search.found))[:EXAMPLES] for search in searches]


def _search(search: ExampleSearch, batch: pa.RecordBatch, tie_N: Floats) -> None:
    value_N = _contributions(search, batch)
    if search.slice != ALL:
        column, value = search.slice.split("=", 1)
        value_N = np.where(_text(batch[column]) == value, value_N, -np.inf)
    value_N += tie_N
    most = min(2 * EXAMPLES, len(value_N))  # Some ids may be decided twice.
    best = np.argpartition(value_N, -most)[-most:] if most else np.zeros(0, np.int64)
    ids = batch["id"].take(pa.array(best)).to_pylist()
    search.found += [(value, name) for value, name in zip(value_N[best].tolist(), ids, strict=True) if value > -np.inf and name]
    search.found.sort(reverse=True)
    del search.found[2 * EXAMPLES :]


def _contributions(search: ExampleSearch, batch: pa.RecordBatch) -> Floats:
    rows = batch.num_rows
    if search.by_bin is not None and search.label is not None:
        read_N = batch[PROBABILITY + search.label].to_numpy(zero_copy_only=False)
        place_N = np.searchsorted(np.array(search.edges, np.float32), read_N, side="right")
        return np.where(np.isnan(read_N), -np.inf, search.by_bin[np.minimum(place_N, len(search.by_bin) - 1)])
    if search.column is not None:
        return np.array([search.by_category.get(value, search.others) for value in _text(batch[search.column]).tolist()])
    if search.feature:
        known_N = batch[EMBEDDING].is_valid().to_numpy(zero_copy_only=False)
        value_N = np.full(rows, -np.inf)
        if known_N.any():
            features_KF = random_features(embeddings_of(batch[EMBEDDING]))
            value_N[known_N] = np.sign(search.feature) * features_KF[:, abs(search.feature) - 1]
        return value_N
    if search.errors:
        return np.where(batch["error"].is_valid().to_numpy(zero_copy_only=False), 0.0, -np.inf)
    return np.zeros(rows)


def _text(column: pa.Array) -> NDArray[np.object_]:
    return np.asarray(pc.fill_null(pc.cast(column, pa.string()), UNKNOWN).to_numpy(zero_copy_only=False))
