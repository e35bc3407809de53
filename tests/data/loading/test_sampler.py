"""The plan of an epoch: every row once, within the budget, the same for the same seed, near-equal work for every rank."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.loading.sampler import Resize, costs, plan, plan_resized, sequence
from vigil_data.specs import BatchPlan, BlockShuffle, Cost, Inputs

COSTS = st.lists(st.floats(0, 50, width=32), max_size=200).map(lambda values: np.array(values, np.float64))
SPECS = st.builds(
    BatchPlan,
    budget=st.floats(1, 100, width=32),
    max_items=st.integers(1, 40),
    pool=st.sampled_from([1, 2, 5, 50]),
)


SHUFFLES = st.none() | st.builds(BlockShuffle, block=st.integers(1, 40), window=st.integers(1, 4), streams=st.integers(1, 3))


def batches_of(made):
    return [made.rows(step, rank) for step in range(made.first, made.steps) for rank in range(made.world)]


def fits(rows, costs, spec):
    return len(rows) <= spec.max_items and (len(rows) <= 1 or costs[rows].sum() <= spec.budget * (1 + 1e-6))


@given(COSTS, SPECS, st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(1, 5))
def test_plan_puts_every_row_into_one_batch_within_limits(costs, spec, seed, epoch, world):
    made = plan(costs, spec, seed, epoch, world)
    batches = batches_of(made)
    rows = np.concatenate([np.empty(0, np.int64), *batches])
    assert sorted(rows.tolist()) == list(range(len(costs)))
    assert all(fits(batch, costs, spec) for batch in batches)
    assert all(batch.dtype == np.int64 for batch in batches)


@given(COSTS, SPECS, SHUFFLES, st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_plan_is_a_pure_function_of_its_arguments(costs, spec, shuffle, seed, world):
    options = {"shuffle": shuffle, "rows": np.arange(len(costs)) * 3}
    first, second = (plan(costs, spec, seed, 3, world, **options) for _ in range(2))
    assert [b.tolist() for b in batches_of(first)] == [b.tolist() for b in batches_of(second)]


@st.composite
def starts(draw):
    """Ranks and steps of the starts of an epoch: each makes some steps, and the next goes on with other ranks."""
    return [(draw(st.integers(1, 9)), draw(st.floats(0, 1))) for _ in range(draw(st.integers(1, 4)))]


@settings(max_examples=200)
@given(COSTS, SPECS, SHUFFLES, st.integers(0, 2**32 - 1), starts(), st.integers(0, 2))
def test_plan_resized_reads_every_row_exactly_once_whatever_the_starts(costs, spec, shuffle, seed, starts, epoch):
    options = {"shuffle": shuffle, "rows": np.cumsum(1 + np.arange(len(costs)) % 3)}
    make = lambda epoch, world: plan(costs, spec, seed, epoch, world, **options)  # noqa: E731
    resizes, read, step = [], [], 0
    for number, (world, share) in enumerate(starts):
        made = plan_resized(make, costs, seed, epoch, world=world, resizes=resizes)
        assert made.world == world
        assert step == 0 or made.first == step or made.first < step  # the same number of ranks again is no change
        last = number == len(starts) - 1
        stop = made.steps if last else step + round(share * (made.steps - step))
        for at in range(step, stop):
            read += [made.rows(at, rank) for rank in range(world)]
        step = stop
        if not last and starts[number + 1][0] != world:
            resizes.append(Resize(epoch, step, world))
    assert sorted(np.concatenate([np.empty(0, np.int64), *read]).tolist()) == list(range(len(costs)))
    assert all(fits(batch, costs, spec) for batch in read)
    # Later epochs have the last number of ranks, and all rows.
    later = plan_resized(make, costs, seed, epoch + 1, world=starts[-1][0], resizes=resizes)
    assert later.first == 0
    assert sorted(np.concatenate([np.empty(0, np.int64), *batches_of(later)]).tolist()) == list(range(len(costs)))


@given(COSTS, SPECS, SHUFFLES, st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(0, 400))
def test_plan_reads_every_row_as_often_as_it_is_drawn(costs, spec, shuffle, seed, world, total):
    weights = 0.1 + np.arange(len(costs)) % 5
    repeats = weights * total / weights.sum() if len(costs) else weights
    made = plan(costs, spec, seed, 1, world, repeats=repeats, shuffle=shuffle, rows=np.arange(len(costs)))
    batches = batches_of(made)
    counts = np.bincount(np.concatenate([np.empty(0, np.int64), *batches]), minlength=len(costs))
    assert counts.sum() == (total if len(costs) else 0)
    assert np.all(np.abs(counts - repeats) < 1 + 1e-6)
    assert all(fits(batch, costs, spec) for batch in batches)


@pytest.mark.parametrize("world", [1, 3])
def test_plan_of_blocks_keeps_few_blocks_open_and_mixes_them(world):
    rng = np.random.default_rng(0)
    n, shuffle = 20_000, BlockShuffle(block=100, window=4, streams=2)
    costs, rows = rng.lognormal(3, 1, n), np.sort(rng.choice(2 * n, n, replace=False))
    made = plan(costs, BatchPlan(budget=1_000, pool=20), 0, 0, world, shuffle=shuffle, rows=rows)
    reads = fetches = 0
    for rank in range(world):
        held = []
        for step in range(made.steps):
            blocks = np.unique(rows[made.rows(step, rank)] // 100).tolist()
            reads += len(blocks)
            for block in blocks:
                if block in held:
                    held.remove(block)
                elif len(held) >= shuffle.held_blocks:
                    held.pop(0)
                    fetches += 1
                else:
                    fetches += 1
                held.append(block)
    total = len(np.unique(rows // 100))
    assert total == 400
    assert fetches < 1.15 * total  # what longer streams have left is read again
    assert reads > 5 * total
    work = made.totals(costs)
    assert np.median(work.min(axis=1) / work.max(axis=1)) > 0.95
    # Batches near each other in time are not near each other in the dataset.
    means = np.array([rows[batch].mean() for batch in batches_of(made)])
    assert abs(np.corrcoef(means[: len(means) // 2], np.arange(len(means) // 2))[0, 1]) < 0.2


def test_plan_of_blocks_has_another_order_in_each_epoch():
    make = partial(plan, np.ones(500), BatchPlan(budget=10), shuffle=BlockShuffle(block=50), rows=np.arange(500))
    orders = {tuple(np.concatenate(batches_of(make(seed, epoch))).tolist()) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_plan_differs_between_epochs_and_seeds():
    costs = np.random.default_rng(0).gamma(2.0, 10.0, 500)
    orders = {
        tuple(np.concatenate(batches_of(plan(costs, BatchPlan(budget=200), seed, epoch)))) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(orders) == 4


@given(st.integers(1, 60), st.integers(1, 8))
def test_plan_leaves_no_rank_without_rows(n, world):
    made = plan(np.ones(n), BatchPlan(budget=7), 0, 0, world)
    if n >= world:
        empty = sum(len(made.rows(step, rank)) == 0 for step in range(made.steps) for rank in range(world))
        assert empty == 0


def test_plan_balances_the_cost_of_ranks():
    costs = np.random.default_rng(0).lognormal(3, 1, 5_000)
    made = plan(costs, BatchPlan(budget=2_000), 0, 0, world=4)
    work = np.array([[costs[made.rows(step, rank)].sum() for rank in range(4)] for step in range(made.steps)])
    assert np.median(work.min(axis=1) / work.max(axis=1)) > 0.98


def test_plan_pool_groups_similar_lengths():
    costs = np.random.default_rng(0).lognormal(3, 1, 5_000)

    def padded(pool):
        batches = batches_of(plan(costs, BatchPlan(budget=1_000, pool=pool), 0, 0))
        return sum(len(batch) * costs[batch].max() for batch in batches) / costs.sum()

    assert padded(50) < 1.2 < 1.6 < padded(1)


def test_plan_fills_batches():
    costs = np.random.default_rng(0).uniform(1, 10, 3_000)
    batches = batches_of(plan(costs, BatchPlan(budget=100, pool=20), 0, 0))
    assert len(batches) < 1.1 * costs.sum() / 100


def test_plan_gives_an_item_over_the_budget_its_own_batch():
    batches = batches_of(plan(np.array([1.0, 1.0, 99.0, 1.0]), BatchPlan(budget=10), 0, 0))
    assert [2] in [batch.tolist() for batch in batches]


def test_plan_of_no_rows_has_no_steps():
    assert plan(np.empty(0), BatchPlan(), 0, 0, 3).steps == 0


def test_plan_raises_for_an_unknown_step_or_rank():
    made = plan(np.ones(4), BatchPlan(budget=2), 0, 0)
    for step, rank in ((2, 0), (-1, 0), (0, 1)):
        with pytest.raises(IndexError):
            made.rows(step, rank)


@given(COSTS, SPECS)
def test_sequence_has_every_row_once_by_increasing_cost(costs, spec):
    batches = sequence(costs, spec)
    rows = np.concatenate([np.empty(0, np.int64), *batches])
    assert sorted(rows.tolist()) == list(range(len(costs)))
    assert np.all(np.diff(costs[rows]) >= 0)
    assert all(fits(batch, costs, spec) for batch in batches)


def test_costs_add_up():
    facts = np.array([[100.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    text = {"tokenizer": {"kind": "local", "path": "t.json"}}
    cost, inputs = (
        Cost(item=1, character=0.5, image=10, second=7),
        Inputs.model_validate({"text": text, "image": {}, "audio": {}}),
    )
    assert costs(facts, cost, inputs).tolist() == [1 + 50 + 20 + 21, 1]
    assert costs(facts, cost, Inputs.model_validate({"text": text})).tolist() == [1 + 50, 1]  # what is not read costs nothing
    assert costs(facts, cost, Inputs.model_validate({"image": {}})).tolist() == [1 + 20, 1]
