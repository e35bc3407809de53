"""Assignment of rows to batches: a pure function of seed, epoch and world size, so that resuming within an epoch is arithmetic.

Rows are shuffled, pools of adjacent rows are sorted by cost so that a batch holds items of similar length (and little padding),
batches are filled up to a cost budget rather than a count, and the batches that run at the same time on several ranks have nearly
equal cost. An epoch of 10 million rows is planned in seconds: ``benchmarks/planning.py``.
"""

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.items import MODALITIES
from vigil_data.loading.sampling import draw
from vigil_data.specs import BatchPlan, BlockShuffle, Cost, Inputs

Rows = NDArray[np.int64]

STEPS_SORTED_TOGETHER = 64
"""Steps of an epoch that goes on with another number of ranks whose batches are dealt out by cost together."""


class Resize(NamedTuple):
    """Change of the number of ranks in a run: before ``step`` of ``epoch`` there were ``world`` ranks."""

    epoch: int
    step: int
    world: int


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """The batches of one epoch, or those that are left of it.

    Attributes:
        items: indices into the planned costs, batch after batch, int64.
        bounds: batch b has ``items[bounds[b]:bounds[b + 1]]``, int64 ``[B + 1]``.
        table: batch of each step and rank, int64 ``[steps - first, world]``; other batches are not read.
        first: first planned step; steps before it were made with another number of ranks.
    """

    items: Rows
    bounds: Rows
    table: Rows
    first: int = 0

    @property
    def world(self) -> int:
        """Number of ranks."""
        return int(self.table.shape[1])

    @property
    def steps(self) -> int:
        """Number of batches of each rank, those before :attr:`first` included."""
        return self.first + len(self.table)

    def rows(self, step: int, rank: int) -> Rows:
        """Return the indices of the items of ``rank`` at ``step``, int64 ``[n]``; empty if there are fewer items than ranks."""
        if not 0 <= rank < self.world or not self.first <= step < self.steps:
            raise IndexError(f"step {step} of {self.first} to {self.steps}, rank {rank} of {self.world}")
        number = self.table[step - self.first, rank]
        return self.items[self.bounds[number] : self.bounds[number + 1]]

    def lengths(self) -> Rows:
        """Return the number of items of each batch, int64 ``[steps - first, world]``."""
        lengths: Rows = np.diff(self.bounds)[self.table]
        return lengths

    def totals(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum of ``values``, ``[N]`` like the costs, over each batch, float64 ``[steps - first, world]``."""
        return _sums(values[self.items], self.bounds)[self.table]


def costs(
    facts_N3: NDArray[np.float64], cost: Cost, inputs: Inputs, tokens_N: NDArray[np.int32] | None = None
) -> NDArray[np.float64]:
    """Return the cost of each item, float64 ``[N]``.

    Args:
        facts_N3: characters, images and seconds of each item, from :meth:`vigil_data.dataset.dataset.Dataset.facts`.
        cost: cost per unit.
        inputs: modalities that are read; the others cost nothing.
        tokens_N: tokens of the texts of each item, from :func:`vigil_data.loading.text_tokens.text_tokens` (default: none).
    """
    read_3 = np.array([getattr(inputs, modality) is not None for modality in MODALITIES])
    total_N: NDArray[np.float64] = cost.item + facts_N3 @ (np.array([cost.character, cost.image, cost.second]) * read_3)
    return total_N if tokens_N is None else total_N + cost.token * tokens_N


def plan(
    costs: NDArray[np.float64],
    spec: BatchPlan,
    seed: int,
    epoch: int,
    world: int = 1,
    *,
    repeats: NDArray[np.float64] | None = None,
    shuffle: BlockShuffle | None = None,
    rows: Rows | None = None,
) -> EpochPlan:
    """Return the batches of one epoch, with every item once, or as often as it is drawn.

    Args:
        costs: cost of each item, ``[N]``, not negative.
        spec: budget, maximum number of items in a batch, and number of batches whose rows are sorted together.
        seed: the run's seed.
        epoch: counted from 0; each has its own order.
        world: number of ranks; the batches of one step have nearly equal cost.
        repeats: expected number of times of each item in the epoch, ``[N]``; see :mod:`vigil_data.loading.sampling`.
        shuffle: keep the rows of a block together in time; needs ``rows``. Without it, any row may follow any other.
        rows: row number in the dataset of each item, ``[N]``, ascending.
    """
    random = np.random.default_rng([seed, epoch])
    drawn = np.arange(len(costs), dtype=np.int64) if repeats is None else draw(repeats, random)
    if shuffle is not None and rows is not None:
        block = rows[drawn] // shuffle.block
        return _plan_blocks(drawn, block, costs, spec=spec, shuffle=shuffle, world=world, random=random)
    items, bounds = _make_divisible(*_batches(random.permutation(drawn), costs, spec), world)
    by_cost = np.argsort(_sums(costs[items], bounds), kind="stable").reshape(-1, world)
    return EpochPlan(items, bounds, by_cost[random.permutation(len(by_cost))])


def resize(made: EpochPlan, costs: NDArray[np.float64], step: int, world: int, seed: Sequence[int]) -> EpochPlan:
    """Return the rest of an epoch for another number of ranks: the batches from ``step`` on, each item of them once.

    Args:
        made: plan of the epoch for the old number of ranks.
        costs: cost of each item, ``[N]``.
        step: first step that the old ranks have not made.
        world: new number of ranks.
        seed: of the order of steps.
    """
    left = made.table[step - made.first :].ravel()
    items, bounds = _make_divisible(*_select(made, left), world)
    chunk = np.arange(len(bounds) - 1) // (STEPS_SORTED_TOGETHER * world)
    random = np.random.default_rng(seed)
    table = np.lexsort((_sums(costs[items], bounds), chunk)).reshape(-1, world)
    order = np.lexsort((random.random(len(table)), np.arange(len(table)) // STEPS_SORTED_TOGETHER))
    return EpochPlan(items, bounds, table[order], step)


def plan_resized(
    make: Callable[[int, int], EpochPlan],
    costs: NDArray[np.float64],
    seed: int,
    epoch: int,
    *,
    world: int,
    resizes: Sequence[Resize],
) -> EpochPlan:
    """Return the plan of an epoch of a run whose number of ranks has changed.

    Args:
        make: function from an epoch and a number of ranks to its plan; see :func:`plan`.
        costs: cost of each item, ``[N]``.
        seed: the run's seed.
        epoch: counted from 0.
        world: number of ranks now.
        resizes: all changes of the run, in order.
    """
    later = [change for change in resizes if change.epoch >= epoch]
    worlds = [*(change.world for change in later), world]
    made = make(epoch, worlds[0])
    for change, then in zip(later, worlds[1:], strict=True):
        if change.epoch == epoch:
            made = resize(made, costs, change.step, then, [seed, epoch, change.step, then])
    return made


def sequence(costs: NDArray[np.float64], spec: BatchPlan) -> list[Rows]:
    """Return batches for evaluation: every item once, by increasing cost, for little padding.

    Args:
        costs: cost of each item, ``[N]``.
        spec: budget and maximum number of items in a batch.
    """
    rows = np.argsort(costs, kind="stable").astype(np.int64)
    return [rows[start:stop] for start, stop in itertools.pairwise(_fill(costs[rows], spec))]


def _fill(costs: NDArray[np.float64], spec: BatchPlan) -> list[int]:
    """Return the bounds of batches of items in their order, each as long as budget and count allow, with at least one item."""
    spent = np.concatenate([[0.0], np.cumsum(costs)])
    # The tolerance covers only the rounding of the running sum: forty items of 0.1 fill a budget of 4.
    affordable = np.searchsorted(spent, spent[:-1] + spec.budget * (1 + 1e-9), side="right") - 1
    start = np.arange(len(costs))
    stop_N: Any = np.minimum(np.clip(affordable, start + 1, start + spec.max_items), len(costs))
    stop = memoryview(stop_N)  # faster to index
    bounds = [0]
    while bounds[-1] < len(costs):
        bounds.append(stop[bounds[-1]])
    return bounds


def _batches(order: Rows, costs: NDArray[np.float64], spec: BatchPlan, windows: Sequence[int] = ()) -> tuple[Rows, Rows]:
    """Return items and bounds of the batches of items in a random order; nothing reaches over an end of ``windows``."""
    if spec.pool == 1 or not len(order):
        return order, np.array(_fill(costs[order], spec), np.int64)
    pools, counts = zip(*_sorted_pools(order, costs, spec, windows), strict=True)
    return np.concatenate(pools), np.concatenate([[0], np.cumsum(np.concatenate(counts))])


def _sorted_pools(
    order: Rows, costs: NDArray[np.float64], spec: BatchPlan, windows: Sequence[int]
) -> Iterator[tuple[Rows, Rows]]:
    """Sort by cost within pools of about ``spec.pool`` batches; give the items of each pool, and the length of its batches.

    A pool's last batch, which need not be full, joins the next pool, unless a window ends there.
    """
    share_of_batch = np.maximum(costs[order] / spec.budget, 1 / spec.max_items)
    pool = np.floor(np.cumsum(share_of_batch) / spec.pool)
    ends = set(windows)
    edges = sorted({0, *(np.flatnonzero(np.diff(pool)) + 1).tolist(), *ends, len(order)})
    del share_of_batch, pool
    rest = order[:0]
    for start, stop in itertools.pairwise(edges):
        joined = np.concatenate([rest, order[start:stop]])
        cost = costs[joined]
        ascending = np.argsort(cost, kind="stable")
        joined = joined[ascending]
        bounds = _fill(cost[ascending], spec)
        kept = bounds if stop == len(order) or stop in ends else bounds[:-1]
        rest = joined[kept[-1] :]
        yield joined[: kept[-1]], np.diff(kept)


def _make_divisible(items: Rows, bounds: Rows, world: int) -> tuple[Rows, Rows]:
    """Halve the longest batches until each rank has one at every step; batches of one row leave an empty half."""
    missing = -(len(bounds) - 1) % world
    if not missing:
        return items, bounds
    items = items.copy()
    longest = list(zip((-np.diff(bounds)).tolist(), bounds[:-1].tolist(), strict=True))
    heapq.heapify(longest)
    cuts = []
    for _ in range(missing):
        length, start = heapq.heappop(longest)
        rows = items[start : start - length].copy()
        cut = start + len(rows[::2])
        items[start:cut], items[cut : start - length] = rows[::2], rows[1::2]
        cuts.append(cut)
        heapq.heappush(longest, (start - cut, start))
        heapq.heappush(longest, (length + cut - start, cut))
    return items, np.sort(np.concatenate([bounds, cuts]))


def _select(made: EpochPlan, numbers: Rows) -> tuple[Rows, Rows]:
    """Return items and bounds of some of a plan's batches, in the given order."""
    lengths = np.diff(made.bounds)[numbers]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    return made.items[np.repeat(made.bounds[numbers] - bounds[:-1], lengths) + np.arange(bounds[-1])], bounds


def _sums(values: NDArray[np.float64], bounds: Rows) -> NDArray[np.float64]:
    """Return the sum of values between bounds, float64 ``[B]``; 0 where there are none."""
    sums_B = np.zeros(len(bounds) - 1)
    filled = np.flatnonzero(np.diff(bounds))
    if len(filled):
        sums_B[filled] = np.add.reduceat(values, bounds[filled])
    return sums_B


def _plan_blocks(
    items: Rows,
    block: Rows,
    costs: NDArray[np.float64],
    *,
    spec: BatchPlan,
    shuffle: BlockShuffle,
    world: int,
    random: np.random.Generator,
) -> EpochPlan:
    """Plan an epoch whose rows are read block by block.

    Blocks are dealt out at random to streams, ``shuffle.streams`` for each rank. A stream mixes the rows of ``shuffle.window``
    blocks at a time. Step t of a rank takes a batch of its stream ``t % streams``.

    Args:
        items: drawn items, ascending.
        block: block of each, ascending.
        costs: cost of each item, ``[N]``.
        spec: how batches are filled.
        shuffle: blocks, windows and streams.
        world: number of ranks.
        random: generator of the epoch.
    """
    edges = np.concatenate([[0], np.flatnonzero(np.diff(block)) + 1, [len(items)]])
    blocks = random.permutation(len(edges) - 1 if len(items) else 0)
    streams = world * shuffle.streams
    made = []
    for stream in range(streams):
        dealt = blocks[stream::streams]
        windows = [dealt[start : start + shuffle.window] for start in range(0, len(dealt), shuffle.window)]
        mixed = [random.permutation(np.concatenate([items[edges[b] : edges[b + 1]] for b in window])) for window in windows]
        order, ends = np.concatenate([items[:0], *mixed]), np.cumsum([len(rows) for rows in mixed], dtype=np.int64)
        made.append((*_batches(order, costs, spec, ends.tolist()), max(len(windows), 1)))
    common = min(len(bounds) - 1 for _, bounds, _ in made)
    offsets = np.cumsum([0, *(len(stream_items) for stream_items, _, _ in made)])
    firsts = np.cumsum([0, *(len(bounds) - 1 for _, bounds, _ in made)])
    # The batches of a step come from the same place, by cost, in a window of each rank's stream.
    window = max(1, common // max(windows for _, _, windows in made))
    chunk = np.arange(common) // window
    shuffled = np.lexsort((random.random(common), chunk))
    table = np.empty((common, shuffle.streams, world), np.int64)
    for stream, (stream_items, bounds, _) in enumerate(made):
        cost = _sums(costs[stream_items], bounds)[:common]
        table[:, stream % shuffle.streams, stream // shuffle.streams] = firsts[stream] + np.lexsort((cost, chunk))[shuffled]
    everything = EpochPlan(
        np.concatenate([stream_items for stream_items, _, _ in made]),
        np.concatenate([[0], *(bounds[1:] + offset for (_, bounds, _), offset in zip(made, offsets, strict=False))]),
        table.reshape(-1, world),
    )
    # What the longer streams have left is shuffled together.
    left = np.concatenate([np.arange(first + common, stop) for first, stop in itertools.pairwise(firsts.tolist())])
    more, bounds = _make_divisible(*_select(everything, left), world)
    by_cost = np.argsort(_sums(costs[more], bounds), kind="stable").reshape(-1, world)
    return EpochPlan(
        np.concatenate([everything.items, more]),
        np.concatenate([everything.bounds, bounds[1:] + len(everything.items)]),
        np.concatenate([everything.table, by_cost[random.permutation(len(by_cost))] + firsts[-1]]),
    )
