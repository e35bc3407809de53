"""Probabilities of answers equal those of a model that is asked for each token in turn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_data.errors import UserError
from vigil_data.guard_formats.answers import AnswerTree, PossibleAnswer, possible_answers
from vigil_data.guard_formats.page import load_format

VOCABULARY = 5
answer_sets = st.lists(
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=4).map(tuple), min_size=2, max_size=8, unique=True
)


def next_logits(beginning: tuple[int, ...], seed: int) -> np.ndarray:
    """Logits of a made-up language model after some tokens: any function of them."""
    return np.random.default_rng([seed, *(token + 1 for token in beginning)]).normal(size=VOCABULARY) * 3


def make(tokens: list[tuple[int, ...]]) -> AnswerTree:
    return AnswerTree([PossibleAnswer(str(ids), 1.0, None) for ids in tokens], tokens, "m")


def read(tree: AnswerTree, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits in the layout of :meth:`AnswerTree.probabilities`, and NaN wherever a shorter path has none."""
    logits = np.full((len(tree.paths), tree.depth + 1, len(tree.tokens)), np.nan)
    totals = np.full((len(tree.paths), tree.depth + 1), np.nan)
    for number, path in enumerate(tree.paths):
        for depth in range(len(path) + 1):
            values = next_logits(path[:depth], seed)
            place = tree.depth - len(path) + depth
            logits[number, place], totals[number, place] = values[tree.tokens], np.log(np.exp(values).sum())
    return logits, totals


def by_definition(tokens: list[tuple[int, ...]], seed: int) -> list[float]:
    """Walk along each answer: at a beginning that other answers share, the share among the tokens that continue one."""
    found = []
    for answer in tokens:
        probability = 1.0
        for depth in range(len(answer) + 1):
            beginning = answer[:depth]
            following = sorted({other[depth] for other in tokens if len(other) > depth and other[:depth] == beginning})
            odds = np.exp(next_logits(beginning, seed))
            if not following:
                break
            if beginning in tokens:  # the whole vocabulary, since any other token ends this answer
                shares = odds / odds.sum()
                probability *= shares[answer[depth]] if depth < len(answer) else 1 - shares[following].sum()
            elif depth < len(answer):
                probability *= odds[answer[depth]] / odds[following].sum()
        found.append(float(probability))
    return found


@given(answer_sets, st.integers(0, 99))
def test_probabilities_follow_the_definition_and_add_up_to_1(tokens: list[tuple[int, ...]], seed: int) -> None:
    tree = make(tokens)
    probabilities = tree.probabilities(*read(tree, seed))
    assert probabilities == pytest.approx(by_definition(tokens, seed), abs=1e-12)
    assert probabilities.sum() == pytest.approx(1)


def test_answers_that_differ_in_their_first_token_are_one_softmax() -> None:
    tree = make([(0, 3), (1,), (2, 2)])
    assert (tree.paths, tree.tokens, tree.depth) == ([()], [0, 1, 2], 0)
    logits = np.array([[[1.0, 2.0, 3.0]]])
    assert tree.probabilities(logits, np.full((1, 1), np.nan)) == pytest.approx(np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum())


def test_answers_that_are_the_same_tokens_are_an_error() -> None:
    with pytest.raises(UserError, match=r"m: the answers .* are the same tokens"):
        AnswerTree([PossibleAnswer("a", 1, None), PossibleAnswer("b", 0, None)], [(1,), (1,)], "m")


def test_possible_answers_of_the_formats() -> None:
    llama, qwen, wild = (load_format(name) for name in ("llama-guard", "qwen3guard", "wildguard"))
    answers = possible_answers(llama.prompt, llama.categories)
    assert answers[0] == PossibleAnswer("\n\nsafe", 0, None)
    assert answers[1] == PossibleAnswer("\n\nunsafe\nS1", 1, "S1")
    assert len(answers) == 1 + 14
    assert PossibleAnswer("Safety: Controversial\nCategories: PII", 1, "pii") in possible_answers(qwen.prompt, qwen.categories)
    assert wild.response is not None
    assert possible_answers(wild.response, {})[1] == PossibleAnswer(
        "Harmful request: yes\nResponse refusal: yes\nHarmful response: no", 0, None
    )
    assert len(possible_answers(wild.response, {})) == 8
