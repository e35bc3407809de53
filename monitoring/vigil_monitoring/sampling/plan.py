"""Plan of a draw: what a budget buys in each stratum, from sums over the population that two passes collect in bounded memory."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_monitoring.sampling.population import UNIT, Component, Population, Rows, components, measure
from vigil_monitoring.sampling.row_keys import Keys, joined_keys, row_keys, text_keys
from vigil_monitoring.sampling.systematic import Cut, allocate, certainty_cut, expected_sizes

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Report = Callable[[str, int, int], None]
"""Called with what is being done, the rows done and their number."""

MIN_BUCKETS, MAX_COUNTS = 2**12, 2**25
"""Fewest intervals of keys whose sizes are summed, and most such sums of all strata (256 MB)."""

POOLED = "other strata"
"""Name of the stratum that pools those that are due fewer than two rows."""

LEAST = 2
"""Fewest rows of a stratum that shows how much its rows differ."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of rows, and sums of them over the population.

    Attributes:
        population: the population.
        seed: seed of the draw.
        weights: factor of each component; sizes are the sum of components times these, in integer units.
        audit: what :attr:`Design.audit` alone adds to the size of each row.
        names: names of the strata.
        items_S: rows of each stratum.
        exposure_S: exposure of each; ``None`` without.
        total_S: size of each.
        largest: the largest sizes of each, descending, with their intervals of keys, ``[2, K]``; as many as the budget.
        bucket_SB: size of each stratum in each interval of keys.
        earlier: rows that earlier queues have.
    """

    population: Population
    seed: int
    weights: Mapping[Component, float]
    audit: float
    names: tuple[str, ...]
    items_S: Ints
    exposure_S: Floats | None
    total_S: Ints
    largest: tuple[Ints, ...]
    bucket_SB: Ints
    earlier: int

    def of(self, rows: Rows) -> Ints:
        """Return the size of each row in integer units, at least 1."""
        size_N = np.zeros(rows.batch.num_rows)
        for component, weight in self.weights.items():
            size_N += weight * measure(rows, component)
        return np.maximum(np.rint(size_N), 1).astype(np.int64)

    def keys(self, rows: Rows) -> Keys:
        """Return the keys by which rows are in order: the cluster's first, if there is one, then the row's own."""
        population = self.population
        own = row_keys(rows.batch, self.seed, timed=population.timed)
        if (cluster := population.design.cluster) is None:
            return own
        column = rows.batch.column(cluster)
        shared = text_keys(column.cast("string"), self.seed)
        shared = np.where(column.is_valid().to_numpy(zero_copy_only=False), shared, joined_keys([own, own]))
        return (shared & ~np.uint64(0xFFFFFFFF)) | (own >> np.uint64(32))

    def buckets(self, keys: Keys) -> Ints:
        """Return the interval of each key."""
        shift = np.uint64(64 - int(self.bucket_SB.shape[1]).bit_length() + 1)
        return (keys >> shift).astype(np.int64)


def columns_of_keys(population: Population) -> list[str]:
    """Return the columns that keys are made of."""
    cluster = population.design.cluster
    return ["id", *(["time"] if population.timed else []), *([cluster] if cluster else [])]


def measure_population(population: Population, budget: int, seed: int, report: Report = lambda *_: None) -> Sizes:
    """Pass over a population twice, for the sums of the components and then of the sizes.

    Args:
        population: the population.
        budget: rows to draw, at most.
        seed: seed of the draw.
        report: called with the progress.

    Raises:
        UserError: if a purpose needs what the traffic lacks, or there is nothing to draw from.
    """
    shares = components(population, *_survey(population))
    sums = dict.fromkeys(shares, 0.0)
    for rows in _reported(population.rows(), population, "sizes", report):
        for component in sums:
            sums[component] += float(measure(rows, component).sum())
    items = round(sums[Component("items")])
    if items == 0:
        raise UserError(f"{population.traffic.path}: has no decisions that earlier queues lack")
    if population.challenger and not any(sums[part] for part in shares if part.among == "pair"):
        raise UserError(
            f"{population.challenger.path}: has none of the ids of {population.traffic.path}; pairs need the same ids"
        )
    known = {component: share for component, share in shares.items() if sums[component] > 0 and share > 0}
    # Sums in another order of rows differ in the last bits; float32 has none of these.
    weights = {of: UNIT * share / sum(known.values()) / float(np.float32(sums[of])) for of, share in known.items()}
    strata = len(population.strata)
    buckets = MIN_BUCKETS
    while buckets < 64 * budget and 2 * buckets * strata <= MAX_COUNTS:
        buckets *= 2
    empty = np.zeros(0, np.int64)
    audit = UNIT * population.design.audit / sum(known.values()) / float(np.float32(items))
    sizes = Sizes(population, seed, weights, audit, (), empty, None, empty, (), np.zeros((strata, buckets), np.int64), 0)
    items_S, exposure_S, known_exposure, earlier = np.zeros(strata, np.int64), np.zeros(strata), False, 0
    largest = _Largest(strata, budget)
    flat = sizes.bucket_SB.reshape(-1)
    for rows in _reported(population.rows(columns_of_keys(population)), population, "strata", report):
        size_N = sizes.of(rows)
        bucket_N = sizes.buckets(sizes.keys(rows))
        np.add.at(flat, rows.stratum_N * buckets + bucket_N, size_N)
        items_S += np.bincount(rows.stratum_N, minlength=strata)
        if rows.exposure_N is not None:
            known_exposure = True
            exposure_S += np.bincount(rows.stratum_N, rows.exposure_N, strata)
        largest.add(rows.stratum_N, size_N, bucket_N)
        earlier += rows.earlier.num_rows
    return Sizes(
        population,
        seed,
        weights,
        audit,
        tuple(population.strata),
        items_S,
        exposure_S if known_exposure else None,
        sizes.bucket_SB.sum(axis=1),
        largest.lists(),
        sizes.bucket_SB,
        earlier,
    )


def _survey(population: Population) -> tuple[set[str], bool]:
    """Return the actions of the traffic, where a purpose needs them, and whether it has exposure."""
    kinds = {purpose.kind for purpose in population.design.purposes}
    names = ["exposure", *(["action"] if kinds & {"action_precision", "recall"} else [])]
    actions: set[str] = set()
    exposure = False
    for batch in population.traffic.batches(names):
        exposure = exposure or batch.column("exposure").null_count < batch.num_rows
        if "action" in names:
            actions.update(action for action in pc.unique(batch.column("action")).to_pylist() if action is not None)
        elif exposure:
            break
    return actions, exposure


def _reported(rows: Iterator[Rows], population: Population, task: str, report: Report) -> Iterator[Rows]:
    done = 0
    for batch in rows:
        yield batch
        done += batch.batch.num_rows + batch.earlier.num_rows
        report(task, done, population.traffic.rows)


class _Largest:
    """The ``most`` largest sizes of each stratum, of all that were added."""

    def __init__(self, strata: int, most: int) -> None:
        self._most = most
        self._kept_3K = np.zeros((3, 0), np.int64)  # stratum, size, interval of keys
        self._least_S = np.zeros(strata, np.int64)

    def add(self, stratum_N: Ints, size_N: Ints, bucket_N: Ints) -> None:
        large_N = size_N > self._least_S[stratum_N]
        added = np.stack([stratum_N[large_N], size_N[large_N], bucket_N[large_N]])
        self._kept_3K = np.concatenate([self._kept_3K, added], axis=1)
        if self._kept_3K.shape[1] > 4 * self._most * len(self._least_S):
            self._trim()

    def _trim(self) -> None:
        kept_3K = self._kept_3K[:, np.lexsort((self._kept_3K[2], -self._kept_3K[1], self._kept_3K[0]))]
        counts_S = np.bincount(kept_3K[0], minlength=len(self._least_S))
        rank_K = np.arange(kept_3K.shape[1]) - np.repeat(np.cumsum(counts_S) - counts_S, counts_S)
        self._least_S[counts_S >= self._most] = kept_3K[1, rank_K == self._most - 1]
        self._kept_3K = kept_3K[:, rank_K < self._most]

    def lists(self) -> tuple[Ints, ...]:
        """Return the sizes of each stratum, descending, and their intervals."""
        self._trim()
        ends = np.cumsum(np.bincount(self._kept_3K[0], minlength=len(self._least_S)))[:-1]
        return tuple(np.split(self._kept_3K[1:], ends, axis=1))


@dataclass(frozen=True, slots=True)
class Plan:
    """Sample sizes of strata, and with them the inclusion probability of every row.

    Attributes:
        names: names of the strata after pooling, in order.
        final_S: index in ``names`` of each stratum of the sizes.
        items, exposure: totals of each; exposure is ``None`` without.
        samples: rows drawn from each.
        cuts: certain rows of each.
        audit: probability with which each row is in the audit subsample, the same for all.
    """

    names: tuple[str, ...]
    final_S: Ints
    items: Ints
    exposure: Floats | None
    samples: Ints
    cuts: tuple[Cut, ...]
    audit: float

    def certain(self, final_N: Ints, size_N: Ints) -> NDArray[np.bool_]:
        """Return whether each row is drawn with certainty."""
        cut_F = np.array([cut.size if cut.certain else np.iinfo(np.int64).max for cut in self.cuts])
        return size_N >= cut_F[final_N]

    def probabilities(self, final_N: Ints, size_N: Ints) -> Floats:
        """Return the inclusion probability of each row."""
        rate_F = np.array([cut.points / cut.rest if cut.rest else 0.0 for cut in self.cuts])
        return np.where(self.certain(final_N, size_N), 1.0, size_N * rate_F[final_N])


def _totals(final_S: Ints, value_S: Floats | Ints, count: int) -> Floats:
    """Return the sums of values of strata over the strata that they are pooled into."""
    return np.bincount(final_S, value_S, count).astype(np.float64)


def make_plan(sizes: Sizes, budget: int) -> Plan:
    """Share a budget among the strata, as the sizes of their rows demand.

    A stratum is due the sum of the inclusion probabilities of its rows; strata that are due fewer than two rows are pooled, so
    that every stratum shows how much its rows differ. With ``least``, strata get at least that many instead.

    Raises:
        UserError: if the budget is too small for the strata.
    """
    population = int(sizes.items_S.sum())
    least = sizes.population.design.strata.least
    due_S = sizes.items_S.astype(np.float64)
    if budget < population:
        due_S = expected_sizes([of[0] for of in sizes.largest], sizes.total_S, budget)
    order = sorted(range(len(sizes.names)), key=sizes.names.__getitem__)
    small = [index for index in order if not least and due_S[index] < LEAST and sizes.items_S[index] > due_S[index] + 1e-9]
    small = small if len(small) > 1 else []
    names = [sizes.names[index] for index in order if index not in small] + ([POOLED] if small else [])
    final_S = np.array([len(names) - 1 if index in small else names.index(sizes.names[index]) for index in range(len(due_S))])
    final = len(names)
    items_F = _totals(final_S, sizes.items_S, final).astype(np.int64)
    due_F = _totals(final_S, due_S, final)
    least_F, budget = np.minimum(items_F, max(least, LEAST)), min(budget, population)
    if least_F.sum() > budget:
        raise UserError(
            f"--budget {budget} is less than the {int(least_F.sum())} that {final} strata need; give more, or have fewer strata"
        )
    samples_F = allocate(due_F, least_F, items_F, budget)
    cuts = []
    for index in range(final):
        parts = np.flatnonzero(final_S == index)
        largest = np.sort(np.concatenate([sizes.largest[part][0] for part in parts]))[::-1]
        total = int(sizes.total_S[parts].sum())
        cuts.append(certainty_cut(largest.tolist(), total, int(items_F[index]), int(samples_F[index])))
    audit = min([1.0, *(np.floor(sizes.audit) * cut.points / cut.rest for cut in cuts if cut.points)])
    exposure_F = None if sizes.exposure_S is None else _totals(final_S, sizes.exposure_S, final)
    return Plan(tuple(names), final_S, items_F, exposure_F, samples_F, tuple(cuts), float(audit))
