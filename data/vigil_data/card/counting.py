"""Counts over the rows of a dataset, batch by batch: memory grows with the number of distinct values, not of rows."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor, log2, log10

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.table_schema import TARGET
from vigil_data.items import BODY, MODALITIES
from vigil_data.presence import presence_patterns

_LINEAR_RATIO = 16
"""Ratio of the largest to the smallest value from which the bins of a histogram double."""

_MERGED_ROWS = 200_000
"""Counts of batches that are collected before they are merged."""


def count_values(dataset: Dataset, columns: Sequence[str]) -> pa.Table:
    """Return the distinct values of columns, nulls included, with their number of rows as ``count``, the most frequent first."""
    merged: pa.Table | None = None
    waiting: list[pa.Table] = []
    for batch in dataset.batches(columns):
        waiting.append(_sum(pa.Table.from_batches([batch]).append_column("count", pa.repeat(1, batch.num_rows)), columns))
        if sum(table.num_rows for table in waiting) > max(_MERGED_ROWS, merged.num_rows if merged else 0):
            merged, waiting = _sum(pa.concat_tables([*([merged] if merged else []), *waiting]), columns), []
    empty = pa.schema([*(dataset.schema.field(name) for name in columns), ("count", pa.int64())]).empty_table()
    order = [("count", "descending"), *((name, "ascending") for name in columns)]
    return _sum(pa.concat_tables([merged or empty, *waiting]), columns).sort_by(order)


def _sum(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    summed = table.group_by(list(columns)).aggregate([("count", "sum")])
    return summed.select([*columns, "count_sum"]).rename_columns([*columns, "count"])


@dataclass(frozen=True, slots=True)
class Distribution:
    """Distribution of a size.

    Attributes:
        count: number of values.
        mean: their mean.
        minimum: the smallest.
        median: the median.
        p95: 95 % of the values are at most this.
        maximum: the largest.
        histogram: lower and upper edge of each bin and its number of values.
        logarithmic: whether each edge is twice the one before; otherwise the edges are round numbers at equal distances.
    """

    count: int
    mean: float
    minimum: float
    median: float
    p95: float
    maximum: float
    histogram: Sequence[tuple[float, float, int]]
    logarithmic: bool


def distribution(values_V: NDArray[np.float64], counts_V: NDArray[np.int64] | None = None) -> Distribution | None:
    """Return the distribution of positive values, each with its number of occurrences; ``None`` without values.

    Quantiles are values that occur: the smallest that at least the given share of the values does not exceed.
    """
    counts_V = np.ones(len(values_V), np.int64) if counts_V is None else counts_V
    wanted_V = values_V > 0
    order = np.argsort(values_V[wanted_V], kind="stable")
    values_V, counts_V = values_V[wanted_V][order], counts_V[wanted_V][order]
    if not len(values_V):
        return None
    below_V = np.cumsum(counts_V)
    total = int(below_V[-1])
    median, p95 = (float(values_V[np.searchsorted(below_V, share * total)]) for share in (0.5, 0.95))
    logarithmic = bool(values_V[-1] >= _LINEAR_RATIO * values_V[0])
    least, most = float(values_V[0]), float(values_V[-1])
    whole = bool((values_V == np.floor(values_V)).all())
    edges = _doubling_edges(least, most) if logarithmic else _round_edges(least, most, 1.0 if whole else 0.0)
    bins = np.bincount(np.searchsorted(edges[1:-1], values_V, "right"), counts_V, len(edges) - 1)
    return Distribution(
        count=total,
        mean=float((values_V * counts_V).sum() / total),
        minimum=least,
        median=median,
        p95=p95,
        maximum=most,
        histogram=[(low, high, int(count)) for low, high, count in zip(edges[:-1], edges[1:], bins, strict=True)],
        logarithmic=logarithmic,
    )


def _doubling_edges(low: float, high: float) -> list[float]:
    return [2.0**power for power in range(floor(log2(low)), floor(log2(high)) + 2)]


def _round_edges(low: float, high: float, least_step: float) -> list[float]:
    """Return edges at multiples of 1, 2 or 5 times a power of ten, for about ten to twenty bins."""
    rough = max((high - low) / 20, high / 200, least_step)
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = floor(low / step), floor(high / step)
    return [round(place * step, 12) for place in range(first, last + 2)]


@dataclass(frozen=True, slots=True, eq=False)
class LabelCounts:
    """Numbers of targets, int64.

    Attributes:
        cells_GS: items of each split and source; the last of each is all others.
        known_LGS: known targets of each label.
        positive_LGS: targets of at least 0.5.
        soft_L: targets between 0 and 1.
        both_known_LL: items in which the targets of two labels are known.
        first_LL: those of them in which the label of the row is positive.
        both_LL: those of them in which both are positive.
    """

    cells_GS: NDArray[np.int64]
    known_LGS: NDArray[np.int64]
    positive_LGS: NDArray[np.int64]
    soft_L: NDArray[np.int64]
    both_known_LL: NDArray[np.int64]
    first_LL: NDArray[np.int64]
    both_LL: NDArray[np.int64]


def count_targets(
    dataset: Dataset, labels: Sequence[str], splits: Sequence[str | None], sources: Sequence[str | None]
) -> LabelCounts:
    """Count targets by split and source, and those of two labels together.

    Args:
        dataset: the dataset.
        labels: its labels.
        splits: values of ``split`` that are counted apart.
        sources: values of ``source`` that are counted apart.
    """
    shape, pairs = (len(splits) + 1, len(sources) + 1), (len(labels), len(labels))
    size = shape[0] * shape[1]
    cells, soft_L = np.zeros(size, np.int64), np.zeros(len(labels), np.int64)
    known_LC, positive_LC = np.zeros((len(labels), size), np.int64), np.zeros((len(labels), size), np.int64)
    both_known_LL, first_LL, both_LL = (np.zeros(pairs, np.int64) for _ in range(3))
    for batch in dataset.batches(["split", "source", *(TARGET + label for label in labels)]):
        cell_B = _places(batch["split"], splits) * shape[1] + _places(batch["source"], sources)
        cells += np.bincount(cell_B, minlength=size)
        targets_BL = np.full((batch.num_rows, len(labels)), np.nan, np.float32)
        for column, label in enumerate(labels):
            targets_BL[:, column] = batch[TARGET + label].to_numpy(zero_copy_only=False)
        known_BL, positive_BL = ~np.isnan(targets_BL), targets_BL >= 0.5
        soft_L += ((targets_BL > 0) & (targets_BL < 1)).sum(axis=0)
        for column in range(len(labels)):
            known_LC[column] += np.bincount(cell_B[known_BL[:, column]], minlength=size)
            positive_LC[column] += np.bincount(cell_B[positive_BL[:, column]], minlength=size)
        # float32 products are exact below 2**24, and a batch is shorter.
        known, positive = known_BL.astype(np.float32), positive_BL.astype(np.float32)
        both_known_LL += (known.T @ known).astype(np.int64)
        first_LL += (positive.T @ known).astype(np.int64)
        both_LL += (positive.T @ positive).astype(np.int64)
    return LabelCounts(
        cells.reshape(shape),
        known_LC.reshape(len(labels), *shape),
        positive_LC.reshape(len(labels), *shape),
        soft_L,
        both_known_LL,
        first_LL,
        both_LL,
    )


def _places(column: pa.Array, values: Sequence[str | None]) -> NDArray[np.int64]:
    found = pc.index_in(column, pa.array(values, column.type), skip_nulls=False)
    return np.asarray(found.fill_null(len(values)).to_numpy(zero_copy_only=False), np.int64)


def count_presence(dataset: Dataset) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """Return the number of items with each presence pattern, and with each role of each modality, the most frequent first."""
    sizes = dict(zip(("characters", "images", "seconds"), MODALITIES, strict=True))
    roles = {modality: f"{modality}_roles" for modality in MODALITIES if f"{modality}_roles" in dataset.schema.names}
    patterns: Counter[str] = Counter()
    found: dict[str, Counter[str]] = {modality: Counter() for modality in MODALITIES}
    for batch in dataset.batches([*sizes, *roles.values()]):
        present_BM = np.stack([batch[name].to_numpy(zero_copy_only=False) > 0 for name in sizes], axis=1)
        patterns.update(presence_patterns(present_BM))
        for place, modality in enumerate(MODALITIES):
            present_B = present_BM[:, place]
            listed = batch[roles[modality]] if modality in roles else pa.nulls(batch.num_rows, pa.list_(pa.string()))
            found[modality][BODY] += int((present_B & listed.is_null().to_numpy(zero_copy_only=False)).sum())
            found[modality].update(_roles(listed))
    return dict(patterns.most_common()), {m: dict((+count).most_common()) for m, count in found.items() if +count}


def _roles(listed: pa.ListArray) -> Iterator[str]:
    """Yield each role of each row once."""
    pairs = pa.table({"row": pc.list_parent_indices(listed), "role": pc.list_flatten(listed)})
    yield from pairs.group_by(["row", "role"]).aggregate([])["role"].to_pylist()
