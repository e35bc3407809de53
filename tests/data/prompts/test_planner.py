"""Planner of rows and choice of the order: against brute force, and against the rows that are assembled."""

from dataclasses import replace
from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_cases import PIECES, clauses, segments

from vigil_data.prompts.assemble import Question, assemble
from vigil_data.prompts.order import batch_cost, cheaper_order
from vigil_data.prompts.pieces import ORDERS
from vigil_data.prompts.planner import ATTENTION_TOKENS, Group, padded_tokens, plan_rows, row_cost

groups_of = st.lists(st.builds(Group, st.integers(0, 30), st.lists(st.integers(1, 30), max_size=12).map(tuple)), max_size=6)


def lengths(header, groups, rows):
    return [header + sum(groups[g].tokens + sum(groups[g].leaves[n] for n in leaves) for g, leaves in row) for row in rows]


@settings(deadline=None)
@given(header=st.integers(0, 20), groups=groups_of, bound=st.integers(1, 400))
def test_plan_rows_holds_each_leaf_once_within_the_bound_and_splits_only_what_does_not_fit(header, groups, bound):
    rows = plan_rows(header, groups, bound)
    held = sorted((g, leaf) for row in rows for g, leaves in row for leaf in leaves)
    assert held == [(g, leaf) for g, group in enumerate(groups) for leaf in range(len(group.leaves))]
    prompts = [header + group.tokens + leaf for group in groups for leaf in group.leaves]
    of_rows = lengths(header, groups, rows)
    assert all(length <= max(bound, *prompts) for length in of_rows)
    assert sum(of_rows) <= sum(prompts)
    assert padded_tokens(header, groups, rows) <= len(prompts) * max(prompts, default=0)
    for number, group in enumerate(groups):
        shares = [g for row in rows for g, _ in row].count(number)
        if header + group.tokens + sum(group.leaves) <= max(of_rows, default=0):
            assert shares == bool(group.leaves)
    assert all(len({g for g, _ in row}) == len(row) for row in rows)  # a beginning stands once in a row


def lowest(header, groups, bound):
    """Lowest cost over all assignments of leaves to rows, by trying each."""
    leaves = [(g, size) for g, group in enumerate(groups) for size in group.leaves]
    best = None
    for assignment in product(range(len(leaves)), repeat=len(leaves)):
        rows = {}
        for row, (g, size) in zip(assignment, leaves, strict=True):
            rows.setdefault(row, []).append((g, size))
        used = [header + sum(groups[g].tokens for g in {g for g, _ in own}) + sum(s for _, s in own) for own in rows.values()]
        if max(used) <= bound:
            cost = len(used) * max(used) * (ATTENTION_TOKENS + max(used))
            best = cost if best is None else min(best, cost)
    return best


@settings(deadline=None, max_examples=40)
@given(
    header=st.integers(0, 5),
    groups=st.lists(
        st.builds(Group, st.integers(0, 20), st.lists(st.integers(1, 20), min_size=1, max_size=2).map(tuple)),
        min_size=1,
        max_size=2,
    ),
    bound=st.integers(1, 100),
)
def test_plan_rows_costs_little_more_than_the_best_rows(header, groups, bound):
    bound = max([bound, *(header + group.tokens + leaf for group in groups for leaf in group.leaves)])
    assert row_cost(header, groups, plan_rows(header, groups, bound)) <= 1.3 * lowest(header, groups, bound)


def test_plan_rows_of_nothing_is_no_row():
    assert plan_rows(5, [], 100) == []
    assert plan_rows(5, [Group(3, ())], 100) == []
    assert padded_tokens(5, [], []) == 0


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    policies=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    data=st.data(),
)
def test_batch_cost_is_that_of_the_assembled_rows(sizes, policies, data):
    asked = np.array(
        data.draw(
            st.lists(
                st.lists(st.booleans(), min_size=len(policies), max_size=len(policies)), min_size=len(sizes), max_size=len(sizes)
            )
        )
    )
    of_clauses = clauses(*policies)
    # The cut depends on the longest policy that an item is asked about, which the cost takes to be the longest of all.
    longest = int(np.argmax(policies))
    asked[:, longest] = True
    pieces = replace(PIECES, max_tokens=70, row_tokens=data.draw(st.integers(1, 200)), order=data.draw(st.sampled_from(ORDERS)))
    batch = segments(*([size] if size else [] for size in sizes))
    questions = [Question(n, (label,), 0) for n, label in np.argwhere(asked).tolist()]
    content = [size + 1 if size else 0 for size in sizes]  # one token of the heading
    assembled = assemble(pieces, of_clauses, questions, batch)
    rows, length = assembled.input_ids.shape
    assert batch_cost(pieces, of_clauses, content, pieces.order, asked) == rows * length * (ATTENTION_TOKENS + length)


def test_cheaper_order_follows_the_lengths():
    pieces = replace(PIECES, max_tokens=1000, row_tokens=1000)
    assert cheaper_order(pieces, clauses(300, 300), [10] * 8) == "policy_first"
    assert cheaper_order(pieces, clauses(10, 10, 10, 10), [300] * 8) == "item_first"
    # Nothing is shared where each item is asked about a policy of its own.
    asked = np.eye(4, dtype=bool)
    assert cheaper_order(pieces, clauses(50, 50, 50, 50), [60] * 4, asked) == "policy_first"
