"""Costs of prompts: what an item adds to a batch, counted in the rows themselves."""

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_cases import PIECES, clauses, segments

from vigil_data.prompts import planner
from vigil_data.prompts.assemble import Question, assemble
from vigil_data.prompts.costs import prompt_costs
from vigil_data.prompts.pieces import ORDERS
from vigil_data.prompts.policy_sampling import PolicySampler, PolicyTraining, wordings
from vigil_data.taxonomy import Head, Label, Paraphrase, Taxonomy

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
        with patch.object(planner, "ATTENTION_TOKENS", 10**12):  # the fewest tokens, in one row
            return assemble(pieces, policies, [first, *there, *asked], segments([5], *[[size] for size in sizes])).tokens

    added = [tokens(count + 1) - tokens(count) for count in range(N)]
    costs_N = prompt_costs(pieces, policies, np.array(sizes, np.float64), asked_NL)
    assert added == [cost if asked.any() else 0 for cost, asked in zip(costs_N.tolist(), asked_NL, strict=True)]


@pytest.mark.parametrize("variants", [None, 2])
@pytest.mark.parametrize("order", ORDERS)
def test_prompt_costs_of_training_on_policies_are_the_tokens_that_items_add_on_average(order, variants):
    """600 items, one of four labels applying to each, against the tokens of their rows, where policies stand once."""
    spec = PolicyTraining(recode=0.3, paraphrase=0.4, composites=0.5, leave_out=0.3, variants=variants)
    labels = {f"l{n}": Label(paraphrases=(Paraphrase(definition="x"),)) for n in range(4)}
    taxonomy = Taxonomy(name="t", heads={"h": Head(labels=labels)})
    targets_NL = np.tile(np.eye(4, dtype=np.float32), (150, 1))
    questions = PolicySampler(taxonomy, spec, 0).questions([str(n) for n in range(600)], targets_NL, 0).questions
    policies = clauses(*[20] * len(wordings(taxonomy, spec)))
    pieces = replace(WIDE, order=order, row_tokens=4000)
    rows = assemble(pieces, policies, questions, segments(*[[10]] * 600))
    costs_N = prompt_costs(pieces, policies[:4], np.full(600, 10.0), policies=spec)
    shared = {question.clauses for question in questions if variants is not None or len(question.clauses) == 1}
    expected = rows.tokens - (order == "policy_first") * sum(20 * len(policy) for policy in shared)
    assert costs_N.sum() == pytest.approx(expected, rel=0.1)
