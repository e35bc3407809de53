"""Questions of training: their answers follow from the targets, nothing unknown is asked, and only seed, epoch and id decide."""

import pickle
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.stats import chisquare

from vigil_data.errors import UserError
from vigil_data.prompts.build import build_prompt
from vigil_data.prompts.policy_sampling import (
    MAX_CODE,
    PolicySampler,
    PolicyTraining,
    TrainingQuestions,
    Wording,
    training_clauses,
    wordings,
)
from vigil_data.prompts.specs import PromptSpec
from vigil_data.source_specs import Local
from vigil_data.taxonomy import Head, Label, Paraphrase, Taxonomy

Targets = NDArray[np.float32]


def taxonomy_of(*paraphrases: int) -> Taxonomy:
    """A taxonomy with one label for each number, which has so many paraphrases."""
    labels = {
        f"label_{place}": Label(
            definition=f"about {place}", paraphrases=tuple(Paraphrase(definition=f"{place}, version {p}") for p in range(count))
        )
        for place, count in enumerate(paraphrases)
    }
    return Taxonomy(name="t", heads={"head": Head(labels=labels)})


@st.composite
def targets(draw: st.DrawFn, labels: int) -> Targets:
    values = st.sampled_from([np.nan, 0.0, 0.3, 0.5, 1.0])
    rows = draw(st.lists(st.lists(values, min_size=labels, max_size=labels), min_size=1, max_size=4))
    return np.array(rows, np.float32)


SHARES = st.sampled_from([0.0, 0.5, 1.0])
SPECS = st.builds(
    PolicyTraining,
    recode=SHARES,
    paraphrase=SHARES,
    composites=st.sampled_from([0.5, 1.0]),
    leave_out=SHARES,
    max_clauses=st.sampled_from([None, 2, 3]),
    variants=st.sampled_from([None, 1, 3]),
)


def ids_of(targets_NL: Targets) -> list[str]:
    return [f"id {n}" for n in range(len(targets_NL))]


@settings(max_examples=200)
@given(st.data(), SPECS, st.lists(st.integers(0, 2), min_size=2, max_size=5), st.integers(0, 50))
def test_questions_follow_the_rules_of_a_brute_force_oracle(
    data: st.DataObject, spec: PolicyTraining, paraphrases: list[int], seed: int
) -> None:
    labels, taxonomy = len(paraphrases), taxonomy_of(*paraphrases)
    targets_NL = data.draw(targets(labels))
    table = wordings(taxonomy, spec)
    drawn = PolicySampler(taxonomy, spec, seed).questions(ids_of(targets_NL), targets_NL, epoch=1)

    own = [question for question in drawn.questions if question.answer < targets_NL.size]
    known = {(n, c) for n in range(len(targets_NL)) for c in range(labels) if not np.isnan(targets_NL[n, c])}
    assert {divmod(question.answer, labels) for question in own} == known, "each known target once, and no unknown one"
    assert len(own) == len(known)
    for question in own:
        assert [(question.item, table[clause].label) for clause in question.clauses] == [divmod(question.answer, labels)]

    composites = [question for question in drawn.questions if question.answer >= targets_NL.size]
    assert [question.answer - targets_NL.size for question in composites] == list(range(len(drawn.target_Q)))
    assert len({question.item for question in composites}) == len(composites)
    for question, target, member_L in zip(composites, drawn.target_Q, drawn.member_QL, strict=True):
        words = [table[clause] for clause in question.clauses]
        asked = [wording.label for wording in words]
        row_L = targets_NL[question.item]
        possible = {  # every policy of labels that are known, to the answer that their union has
            chosen: max(float(row_L[label]) for label in chosen)
            for count in range(2, min(labels, spec.max_clauses or labels) + 1)
            for chosen in combinations([c for c in range(labels) if not np.isnan(row_L[c])], count)
        }
        assert possible[tuple(sorted(asked))] == target
        assert np.flatnonzero(member_L).tolist() == sorted(asked)
        if spec.leave_out == 0 and (row_L >= 0.5).any():
            assert target >= 0.5
        if spec.leave_out == 1 and (row_L < 0.5).sum() >= 2:
            assert target < 0.5
        codes = [wording.code for wording in words]
        assert codes in ([0] * len(words), list(range(1, len(words) + 1))), "by name, or S1, S2, … in their order"
    for wording in (table[clause] for question in drawn.questions for clause in question.clauses):
        assert wording.paraphrase <= paraphrases[wording.label]
        assert spec.paraphrase or not wording.paraphrase
        assert spec.paraphrase < 1 or wording.paraphrase or not paraphrases[wording.label]
        assert bool(wording.code) == (spec.recode == 1) or spec.recode == 0.5


@settings(max_examples=50)
@given(st.data(), SPECS, st.integers(0, 3), st.integers(0, 3))
def test_questions_of_an_item_depend_on_seed_epoch_and_id_alone(
    data: st.DataObject, spec: PolicyTraining, seed: int, epoch: int
) -> None:
    """In whatever batch an item is, in whatever process: the same clauses in the same order; with variants, the batch's own."""
    taxonomy = taxonomy_of(1, 0, 2, 1)
    targets_NL = data.draw(targets(4))
    sampler = PolicySampler(taxonomy, spec, seed)
    pickled = pickle.loads(pickle.dumps(PolicySampler(taxonomy, spec, seed)))
    sampler.questions(["other"], np.ones((1, 4), np.float32), epoch + 1)  # draws leave no state behind
    together = sampler.questions(ids_of(targets_NL), targets_NL, epoch)
    ids, unasked = ids_of(targets_NL), np.full((1, 4), np.nan, np.float32)

    def ask_alone(n: int) -> TrainingQuestions:
        if spec.variants is None:
            return pickled.questions([ids[n]], targets_NL[n : n + 1], epoch)
        return pickled.questions([ids[0], ids[n]], np.concatenate([unasked, targets_NL[n : n + 1]]), epoch)

    alone = [ask_alone(n) for n in range(len(ids))]
    for n, single in enumerate(alone):
        assert [q.clauses for q in together.questions if q.item == n] == [q.clauses for q in single.questions]
    np.testing.assert_array_equal(together.target_Q, np.concatenate([single.target_Q for single in alone]))
    np.testing.assert_array_equal(together.member_QL, np.concatenate([single.member_QL for single in alone]))


def test_questions_change_with_seed_epoch_and_id() -> None:
    spec, taxonomy = PolicyTraining(recode=0.5, paraphrase=0.5, composites=0.5), taxonomy_of(3, 3, 3, 3)
    targets_NL = np.tile(np.array([[0, 1, 0, 0]], np.float32), (20, 1))

    def drawn(seed: int, epoch: int, prefix: str = "a") -> TrainingQuestions:
        return PolicySampler(taxonomy, spec, seed).questions([f"{prefix}{n}" for n in range(20)], targets_NL, epoch)

    first = drawn(0, 0).questions
    assert first == drawn(0, 0).questions
    assert len({first, drawn(1, 0).questions, drawn(0, 1).questions, drawn(0, 0, "b").questions}) == 4


def test_shares_numbers_and_orders_have_the_distribution_that_is_stated() -> None:
    """10,000 items; a chi-square test of each uniform choice, at a level at which one of ten thousand seeds would fail."""
    spec = PolicyTraining(recode=0.3, paraphrase=0.4, composites=0.5, leave_out=0.25)
    taxonomy = taxonomy_of(2, 2, 2, 2, 2)
    count = 10_000
    targets_NL = np.tile(np.array([[0, 1, 0, 0, 0]], np.float32), (count, 1))
    drawn = PolicySampler(taxonomy, spec, 7).questions([str(n) for n in range(count)], targets_NL, 0)
    table = wordings(taxonomy, spec)
    composites = [q.clauses for q in drawn.questions if q.answer >= targets_NL.size]
    own = [table[q.clauses[0]] for q in drawn.questions if q.answer < targets_NL.size]

    def near(observed: float, expected: float, draws: int) -> bool:
        return abs(observed - expected) < 4 * (expected * (1 - expected) / draws) ** 0.5

    assert near(len(composites) / count, 0.5, count)
    assert near(float((drawn.target_Q == 0).mean()), 0.25, len(composites)), "share whose answer is flipped"
    assert near(float(np.mean([w.code > 0 for w in own])), 0.3, len(own))
    assert near(float(np.mean([w.paraphrase > 0 for w in own])), 0.4, len(own))
    sizes = drawn.member_QL.sum(1)
    uniform = [
        [np.sum(sizes[drawn.target_Q == 1] == size) for size in (2, 3, 4, 5)],  # 1 to 4 of the labels that do not apply
        [np.sum(sizes[drawn.target_Q == 0] == size) for size in (2, 3, 4)],
        list(Counter(table[clauses[0]].label for clauses in composites if len(clauses) == 5).values()),
        list(Counter(w.code for w in own if w.code).values()),
        list(Counter(w.paraphrase for w in own if w.paraphrase).values()),
        [int((drawn.member_QL[:, label]).sum()) for label in (0, 2, 3, 4)],
    ]
    for counts in uniform:
        assert chisquare(counts).pvalue > 1e-4, counts


def test_variants_bound_the_number_of_wordings_of_a_policy_in_a_batch_and_not_in_an_epoch() -> None:
    taxonomy = taxonomy_of(3, 3, 3)
    targets_NL = np.tile(np.array([[0, 1, 0]], np.float32), (500, 1))
    ids = [str(n) for n in range(500)]

    def texts(variants: int | None, batch: int = 500) -> Counter[tuple[int, ...]]:
        spec = PolicyTraining(recode=0.5, paraphrase=1, composites=1, variants=variants)
        table, sampler = wordings(taxonomy, spec), PolicySampler(taxonomy, spec, 0)
        starts = range(0, 500, batch)
        drawn = [sampler.questions(ids[n : n + batch], targets_NL[n : n + batch], 0) for n in starts]
        questions = {(tuple(sorted(table[c].label for c in q.clauses)), q.clauses) for part in drawn for q in part.questions}
        return Counter(labels for labels, _ in questions)

    assert max(texts(3).values()) == 3
    assert max(texts(1).values()) == 1
    assert max(texts(1, batch=10).values()) > 10
    assert max(texts(None).values()) > 10


def test_questions_ask_what_the_loss_also_reads_and_draw_no_answer_from_it() -> None:
    taxonomy, spec = taxonomy_of(0, 0, 0), PolicyTraining(composites=1)
    targets_NL = np.array([[0, np.nan, 1]], np.float32)
    drawn = PolicySampler(taxonomy, spec, 0).questions(["a"], targets_NL, 0, np.array([[True, True, False]]))
    assert [(question.clauses, question.answer) for question in drawn.questions[:2]] == [((0,), 0), ((1,), 1)]
    assert drawn.member_QL.tolist() == [[True, False, True]]


def test_wordings_begin_with_the_labels_own_texts_and_have_each_once() -> None:
    taxonomy = taxonomy_of(1, 0)
    assert wordings(taxonomy) == (Wording(0), Wording(1))
    assert wordings(taxonomy, PolicyTraining(composites=1)) == (Wording(0), Wording(1))
    complete = wordings(taxonomy, PolicyTraining(recode=0.1, paraphrase=0.1))
    assert complete[:2] == (Wording(0), Wording(1))
    assert sorted(complete) == sorted([(0, p, c) for p in (0, 1) for c in (0, 1, 2)] + [(1, 0, c) for c in (0, 1, 2)])
    many = wordings(taxonomy_of(*[0] * 30), PolicyTraining(recode=1))
    assert max(wording.code for wording in many) == MAX_CODE


def test_training_clauses_have_the_words_and_the_heading_of_each_wording() -> None:
    spam = Label(
        definition="junk",
        allowed=("news",),
        paraphrases=(Paraphrase(name="advertising", definition="an offer"), Paraphrase(instruction="?")),
    )
    taxonomy = Taxonomy(name="t", heads={"head": Head(labels={"spam_offers": spam})})
    found = training_clauses(taxonomy, PolicyTraining(recode=1, paraphrase=1), lambda text: range(len(text)))
    assert {(clause.label, clause.text) for clause in found} == {
        ("spam_offers", f"Category: {title}\n{text}\nDoes not violate:\n- news")
        for titles, text in [
            (("spam offers", "S1"), "Definition: junk"),
            (("advertising", "S1"), "Definition: an offer"),
            (("spam offers", "S1"), "Question: ?\nDefinition: junk"),
        ]
        for title in titles
    }
    assert found[0].text.startswith("Category: spam offers\nDefinition: junk")
    assert all(clause.ids == tuple(range(len(clause.text))) for clause in found)


def test_build_prompt_refuses_composites_that_leave_no_room(tiny_lm_tokenizer: Callable[[str], Path]) -> None:
    taxonomy, source = taxonomy_of(1, 1, 1), Local(path=str(tiny_lm_tokenizer("qwen3")))
    short, long = PromptSpec(max_tokens=330), PolicyTraining(composites=1, recode=1)
    pieces, own = build_prompt(short, source, taxonomy)
    both = build_prompt(short, source, taxonomy, PolicyTraining(recode=1))
    assert both[0] == pieces
    assert both[1][:3] == own
    assert len(both[1]) == 12
    with pytest.raises(UserError, match=r"model.policies: the policy of .* tokens.* or raise max_tokens, or lower max_clauses"):
        build_prompt(PromptSpec(max_tokens=pieces.fixed_tokens + 16 + len(both[1][-1].ids) + 8), source, taxonomy, long)


def test_composites_have_at_most_twenty_clauses() -> None:
    spec, labels = PolicyTraining(recode=1, composites=1), 30
    taxonomy = taxonomy_of(*[0] * labels)
    drawn = PolicySampler(taxonomy, spec, 0).questions(["a", "b"], np.eye(2, labels, dtype=np.float32), 0)
    both = np.ones((1, labels), np.float32)
    every = PolicySampler(taxonomy, spec, 0).questions(["c"], both, 0)
    assert every.member_QL.sum() == MAX_CODE
    assert drawn.member_QL.sum(1).max() <= MAX_CODE


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "changes nothing"),
        ({"recode": 0.5, "leave_out": 0.5}, "leave_out: belongs to composites"),
        ({"paraphrase": 0.5, "max_clauses": 3}, "max_clauses: belongs to composites"),
        ({"composites": 1.5}, "less than or equal to 1"),
        ({"composites": 1, "max_clauses": 21}, "less than or equal to 20"),
    ],
)
def test_policy_training_refuses_keys_without_effect(keys: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PolicyTraining.model_validate(keys)
