"""Assignment of rows to batches: a pure function of seed, epoch and world size, so that resuming within an epoch is arithmetic.

Rows are shuffled, pools of adjacent rows are sorted by cost so that a batch holds items of similar length (and little padding),
batches are filled up to a cost budget rather than a count, and the batches that run at the same time on several ranks have nearly
equal cost.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vigil_data.items import MODALITIES
from vigil_data.specs import BatchPlan, Cost, Inputs

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """The batches of one epoch.

    Attributes:
        batches: ``world`` batches for each step, in order; each holds indices into the planned costs.
        world: number of ranks.
    """

    batches: tuple[Rows, ...]
    world: int

    @property
    def steps(self) -> int:
        """Number of batches of each rank."""
        return len(self.batches) // self.world

    def rows(self, step: int, rank: int) -> Rows:
        """Return the indices of the items of ``rank`` at ``step``, int64 ``[n]``; empty if there are fewer items than ranks."""
        if not 0 <= rank < self.world or not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}, rank {rank} of {self.world}")
        return self.batches[step * self.world + rank]


def costs(facts_N3: NDArray[np.float64], cost: Cost, inputs: Inputs) -> NDArray[np.float64]:
    """Return the cost of each item, float64 ``[N]``.

    Args:
        facts_N3: characters, images and seconds of each item, from :meth:`vigil_data.dataset.dataset.Dataset.facts`.
        cost: cost per unit.
        inputs: modalities that are read; the others cost nothing.
    """
    read_3 = np.array([getattr(inputs, modality) is not None for modality in MODALITIES])
    total_N: NDArray[np.float64] = cost.item + facts_N3 @ (np.array([cost.character, cost.image, cost.second]) * read_3)
    return total_N


def plan(costs: NDArray[np.float64], spec: BatchPlan, seed: int, epoch: int, world: int = 1) -> EpochPlan:
    """Return the batches of one epoch, with every item once.

    Args:
        costs: cost of each item, ``[N]``, not negative.
        spec: budget, maximum number of items in a batch, and number of batches whose rows are sorted together.
        seed: the run's seed.
        epoch: counted from 0; each has its own order.
        world: number of ranks; the batches of one step have nearly equal cost.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(costs)).astype(np.int64)
    batches = list(_fill(order, costs, spec)) if spec.pool == 1 else list(_fill_sorted(order, costs, spec))
    batches = _make_divisible(batches, world)
    by_cost = np.argsort([costs[rows].sum() for rows in batches], kind="stable")
    steps = random.permutation(len(batches) // world)
    return EpochPlan(tuple(batches[by_cost[step * world + rank]] for step in steps for rank in range(world)), world)


def sequence(costs: NDArray[np.float64], spec: BatchPlan) -> list[Rows]:
    """Return batches for evaluation: every item once, by increasing cost, for little padding.

    Args:
        costs: cost of each item, ``[N]``.
        spec: budget and maximum number of items in a batch.
    """
    return list(_fill(np.argsort(costs, kind="stable").astype(np.int64), costs, spec))


def _fill(rows: Rows, costs: NDArray[np.float64], spec: BatchPlan) -> Iterator[Rows]:
    """Split ``rows`` into batches in order, each as long as budget and count allow, with at least one row."""
    spent = np.concatenate([[0.0], np.cumsum(costs[rows])])
    start = 0
    while start < len(rows):
        # The tolerance covers only the rounding of the running sum: forty items of 0.1 fill a budget of 4.
        affordable = int(np.searchsorted(spent, spent[start] + spec.budget * (1 + 1e-9), side="right")) - 1
        stop = min(max(affordable, start + 1), start + spec.max_items)
        yield rows[start:stop]
        start = stop


def _fill_sorted(order: Rows, costs: NDArray[np.float64], spec: BatchPlan) -> Iterator[Rows]:
    """Sort by cost within pools of about ``spec.pool`` batches and split; a pool's remainder joins the next pool."""
    share_of_batch = np.maximum(costs[order] / spec.budget, 1 / spec.max_items)
    pool = np.floor(np.cumsum(share_of_batch) / spec.pool)
    rest = order[:0]
    for rows in np.split(order, np.flatnonzero(np.diff(pool)) + 1):
        joined = np.concatenate([rest, rows])
        *full, rest = [*_fill(joined[np.argsort(costs[joined], kind="stable")], costs, spec)] or [rest]
        yield from full
    if len(rest):
        yield rest


def _make_divisible(batches: list[Rows], world: int) -> list[Rows]:
    """Halve the longest batches until each rank has one at every step; batches of one row leave an empty half."""
    while len(batches) % world:
        longest = max(range(len(batches)), key=lambda i: len(batches[i]))
        rows = batches[longest]
        batches = [*batches[:longest], rows[::2], rows[1::2], *batches[longest + 1 :]]
    return batches
