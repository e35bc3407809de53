"""The plan of an epoch: every row once, within the budget, the same for the same seed, near-equal work for every rank."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_data.loading.sampler import costs, plan, sequence
from vigil_data.specs import BatchPlan, Cost, Inputs

COSTS = st.lists(st.floats(0, 50, width=32), max_size=200).map(lambda values: np.array(values, np.float64))
SPECS = st.builds(
    BatchPlan,
    budget=st.floats(1, 100, width=32),
    max_items=st.integers(1, 40),
    pool=st.sampled_from([1, 2, 5, 50]),
)


def fits(rows, costs, spec):
    return len(rows) <= spec.max_items and (len(rows) <= 1 or costs[rows].sum() <= spec.budget * (1 + 1e-6))


@given(COSTS, SPECS, st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(1, 5))
def test_plan_puts_every_row_into_one_batch_within_limits(costs, spec, seed, epoch, world):
    made = plan(costs, spec, seed, epoch, world)
    batches = [made.rows(step, rank) for step in range(made.steps) for rank in range(world)]
    rows = np.concatenate([np.empty(0, np.int64), *batches])
    assert sorted(rows.tolist()) == list(range(len(costs)))
    assert all(fits(batch, costs, spec) for batch in batches)
    assert all(batch.dtype == np.int64 for batch in batches)


@given(COSTS, SPECS, st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_plan_is_a_pure_function_of_its_arguments(costs, spec, seed, world):
    first, second = (plan(costs, spec, seed, 3, world) for _ in range(2))
    assert [b.tolist() for b in first.batches] == [b.tolist() for b in second.batches]


def test_plan_differs_between_epochs_and_seeds():
    costs = np.random.default_rng(0).gamma(2.0, 10.0, 500)
    orders = {
        tuple(np.concatenate(plan(costs, BatchPlan(budget=200), seed, epoch).batches)) for seed in (0, 1) for epoch in (0, 1)
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
        batches = plan(costs, BatchPlan(budget=1_000, pool=pool), 0, 0).batches
        return sum(len(batch) * costs[batch].max() for batch in batches) / costs.sum()

    assert padded(50) < 1.2 < 1.6 < padded(1)


def test_plan_fills_batches():
    costs = np.random.default_rng(0).uniform(1, 10, 3_000)
    batches = plan(costs, BatchPlan(budget=100, pool=20), 0, 0).batches
    assert len(batches) < 1.1 * costs.sum() / 100


def test_plan_gives_an_item_over_the_budget_its_own_batch():
    batches = plan(np.array([1.0, 1.0, 99.0, 1.0]), BatchPlan(budget=10), 0, 0).batches
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
