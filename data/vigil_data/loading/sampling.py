"""How often each item is read in an epoch: mixing of sources by temperature, and more frequent reading of rare labels.

Every item has an expected number of times in an epoch. A draw rounds it up or down at random, so that the number of items in an
epoch is exact, and averages over epochs are those expected.

Example:
    >>> expected_repeats(Sampling(by="source", temperature=2.0), 4, np.array([0, 0, 0, 1]), ("forum", "chat"))
    array([0.84529946, 0.84529946, 0.84529946, 1.46410162])
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import UserError, one_line
from vigil_data.specs import Sampling

MAX_SHOWN = 40
"""Lines about shares of values and labels."""


@dataclass(frozen=True, slots=True)
class SamplingShare:
    """Share of a value of the column or of a label's positive items: of the training items, and of an epoch."""

    name: str
    items: float
    epoch: float


def choose_repeats(
    spec: Sampling,
    dataset: Dataset,
    rows: NDArray[np.int64],
    labels: Sequence[str],
    targets_NL: NDArray[np.float32] | None,
) -> tuple[NDArray[np.float64], tuple[SamplingShare, ...]]:
    """Return how often each row is read in an epoch on average, float64 ``[N]``, and the shares that result.

    Args:
        spec: the choices.
        dataset: the dataset.
        rows: training rows, int64 ``[N]``.
        labels: names of the targets.
        targets_NL: targets, NaN where unknown; ``None`` if the model learns none.

    Raises:
        UserError: if a column or a value does not exist.
    """
    names: tuple[str, ...] = ()
    group_N: NDArray[np.int64] | None = None
    members: list[tuple[str, NDArray[np.bool_]]] = []
    if spec.by is not None:
        names, group_N = column_groups(dataset, spec.by, rows, "data.sampling.by")
        members = [(f"{spec.by} {name}", group_N == number) for number, name in enumerate(names)]
        if unknown := sorted(set(spec.weights) - set(names)):
            shown = f"{', '.join(names[:MAX_SHOWN])}{' …' * (len(names) > MAX_SHOWN)}"
            problem = f"no training item has {spec.by} {', '.join(unknown)}; the values of {spec.by} are {shown}"
            raise UserError(one_line(f"data.sampling.weights: {problem}"))
    if targets_NL is not None:
        members += [(f"{label} positive", targets_NL[:, number] >= 0.5) for number, label in enumerate(labels)]
    repeats_N = expected_repeats(spec, len(rows), group_N, names, targets_NL)
    total = float(repeats_N.sum())
    return repeats_N, tuple(SamplingShare(name, float(of.mean()), float(repeats_N[of].sum()) / total) for name, of in members)


def describe_shares(shares: Sequence[SamplingShare]) -> Iterator[str]:
    """Yield a line for each share, at most :data:`MAX_SHOWN`."""
    for share in shares[:MAX_SHOWN]:
        yield f"{one_line(share.name)}: {100 * share.items:.3g} % of the items, {100 * share.epoch:.3g} % of an epoch"
    if len(shares) > MAX_SHOWN:
        yield f"and {len(shares) - MAX_SHOWN} more"


def column_groups(dataset: Dataset, column: str, rows: NDArray[np.int64], key: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the values of a column, ``none`` for rows without one, and the number of each row's value.

    Raises:
        UserError: if the column does not exist; the message names the recipe's key.
    """
    if column not in dataset.columns:
        raise UserError(f"{dataset.path}: has no column {column} ({key}); it has {', '.join(dataset.columns)}")
    stored = dataset.table([column], rows)[column]
    values = pc.fill_null(pc.cast(stored, pa.string()), "none").combine_chunks().dictionary_encode()
    names = np.asarray(values.dictionary.to_pylist(), str)
    order = np.argsort(names)
    return tuple(names[order].tolist()), np.argsort(order)[values.indices.to_numpy()].astype(np.int64)


def expected_repeats(
    spec: Sampling,
    items: int,
    group_N: NDArray[np.int64] | None = None,
    groups: Sequence[str] = (),
    targets_NL: NDArray[np.float32] | None = None,
) -> NDArray[np.float64]:
    """Return how often each item is read in an epoch on average, float64 ``[N]``; the sum is the length of the epoch.

    A group with a share p of the items gets a share of the epoch proportional to ``weight * p ** (1 / temperature)`` (Arivazhagan
    et al. 2019, section 4.2). An item with rare labels counts ``max(1, sqrt(threshold / f))`` times, with the frequency f of the
    rarest label that it is positive for (repeat-factor sampling, Gupta, Dollár and Girshick 2019, section 3), among the items
    whose target of that label is known. Both factors are multiplied, and scaled to the length of the epoch.

    Args:
        spec: the choices.
        items: number of items N.
        group_N: group of each item, int64 ``[N]``; needed with ``spec.by``.
        groups: name of each group.
        targets_NL: targets, NaN where unknown; needed with ``spec.repeat_threshold``.
    """
    factor_N = np.ones(items)
    if group_N is not None:
        share_G = np.bincount(group_N, minlength=len(groups)) / items
        weight_G = np.array([spec.weights.get(name, 1.0) for name in groups])
        factor_N = (weight_G * share_G ** (1 / spec.temperature - 1))[group_N]
    if spec.repeat_threshold is not None and targets_NL is not None:
        positive_NL = targets_NL >= 0.5
        known_L = (~np.isnan(targets_NL)).sum(axis=0)
        frequency_L = positive_NL.sum(axis=0) / np.maximum(known_L, 1)
        with np.errstate(divide="ignore"):
            repeat_L = np.maximum(1.0, np.sqrt(spec.repeat_threshold / frequency_L))
        factor_N = factor_N * np.where(positive_NL, repeat_L, 1.0).max(axis=1, initial=1.0)
    repeats_N: NDArray[np.float64] = factor_N * ((items if spec.items is None else spec.items) / factor_N.sum())
    return repeats_N


def draw(repeats_N: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int64]:
    """Draw the items of an epoch: each as often as expected, rounded up or down; ascending, with repetition, int64.

    Fractions are drawn by systematic sampling in a random order, so the number of drawn items is the sum, a whole number but for
    rounding.
    """
    order = random.permutation(len(repeats_N))
    total = round(float(repeats_N.sum()))
    edges = np.cumsum(repeats_N[order]) + random.random()
    reached = np.minimum(np.floor(edges), total).astype(np.int64)
    reached[-1:] = total  # whatever the rounding of the running sum
    counts = np.empty(len(repeats_N), np.int64)
    counts[order] = np.diff(reached, prepend=0)
    return np.repeat(np.arange(len(repeats_N), dtype=np.int64), counts)
