"""Costs of prompts: what an item adds to a batch, counted in the rows themselves."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.prompts.assemble import Question, assemble
from vigil_data.prompts.costs import prompt_costs

from .test_assemble import ORDERS, PIECES, clauses, segments

WIDE = replace(PIECES, max_tokens=1000, row_tokens=100_000)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), order=st.sampled_from(ORDERS))
def test_prompt_costs_are_the_tokens_that_an_item_adds_to_the_row(data, order):
    policies = clauses(*data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=4)))
    sizes = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
    pieces, N, L = replace(WIDE, order=order), len(sizes), len(policies)
    asked_NL = np.array(data.draw(st.lists(st.lists(st.booleans(), min_size=L, max_size=L), min_size=N, max_size=N)))
    first = Question(0, tuple(range(L)), 0)  # one more question, so that no batch is without any

    def tokens(count):
        # Each label's policy is there already, as in a large batch.
        there = [Question(0, (l,), 0) for l in range(L)]
        asked = [Question(n + 1, (l,), 0) for n, l in np.argwhere(asked_NL[:count])]
        return assemble(pieces, policies, [first, *there, *asked], segments([5], *[[size] for size in sizes])).tokens

    added = [tokens(count + 1) - tokens(count) for count in range(N)]
    costs_N = prompt_costs(pieces, policies, np.array(sizes, np.float64), asked_NL)
    assert added == [cost if asked.any() else 0 for cost, asked in zip(costs_N.tolist(), asked_NL, strict=True)]
