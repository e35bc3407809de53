"""Edits that evade filters change no letters, MinHash estimates the Jaccard index, and banding finds near-duplicates."""

import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.quality.near.texts import TextPrints, skeleton

SENTENCE = "The harbour market opens again on Saturday with fresh bread and flowers"


@pytest.mark.parametrize(
    "edited",
    [
        SENTENCE.upper(),
        "The harbour market, opens again: on Saturday with fresh bread and flowers!!!",
        "Th3 h4rbour m@rket open$ ag4in on S4turday w1th fresh bread and fl0wers",
        "The h a r b o u r market o.p.e.n.s again on Saturday \U0001f525 with fresh bread and flowers \U0001f44d\U0001f3fd",
        "The harb\u043eur m\u0430rket opens again on S\u0430turday with fresh bre\u0430d and fl\u043ewers",
        "The har\u200bbour market opens again on Sat\u00adurday with fresh bread and flowers",
        "Thé hàrbour markét opens again on Saturday with fresh bread and flowers",
        "The harbouuuuur market opens agaaaain on Saturday with fresh bread and flowers",
        "\uff34he harbour market opens again on Saturday with fresh bread and flowers",
    ],
)
def test_skeleton_ignores_edits_that_evade_filters(edited: str) -> None:
    assert skeleton(edited) == skeleton(SENTENCE)


def test_skeleton_keeps_numbers_and_letters_of_other_scripts() -> None:
    assert skeleton("Call 555-1234!") == "cai5551234"
    assert skeleton("call 555-1234") != skeleton("call 777-9999")
    assert skeleton("\u043f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440") != ""
    assert skeleton("\U0001f525\U0001f525 ... !!") == ""


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_skeleton_of_any_text_is_its_own_skeleton(text: str) -> None:
    letters = skeleton(text)
    assert not any(character.isspace() for character in letters)
    assert skeleton(f"  {text}  ") == letters


def shingles(text: str) -> set[str]:
    """Shingles as defined, by another way than the code."""
    letters = skeleton(text)
    return {letters[place : place + 4] for place in range(len(letters) - 3)} if len(letters) >= 11 else {letters}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("abcdef 12\u0435!", max_size=40), min_size=2, max_size=6))
def test_jaccard_equals_that_of_sets_of_substrings(texts: list[str]) -> None:
    prints = TextPrints.of([f"{text}x" for text in texts])  # each has a letter
    left, right = (np.array(side) for side in zip(*combinations(range(len(texts)), 2), strict=True))
    sets = [shingles(f"{text}x") for text in texts]
    expected = [len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for i, j in zip(left, right, strict=True)]
    np.testing.assert_allclose(prints.jaccard(left, right), expected)


def test_estimate_is_within_its_standard_error() -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("bcdfghmnprstvwz", k=6)) for _ in range(400)]
    texts = [" ".join(words[start : start + 60]) for start in range(0, 340, 5)]
    prints = TextPrints.of(texts)
    left, right = (np.array(side) for side in zip(*combinations(range(len(texts)), 2), strict=True))
    error = prints.estimate(left, right) - prints.jaccard(left, right)
    assert abs(error.mean()) < 0.01
    assert 0.005 < error.std() < 0.045


def test_pairs_finds_planted_edits_and_nothing_else() -> None:
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijkmnoprstuvw", k=rng.randint(3, 8))) for _ in range(500)]
    texts = [" ".join(rng.choices(words, k=14)) for _ in range(1000)]
    edited = []
    for text in texts[:200]:
        parts = text.split()
        parts[rng.randrange(14)] = "anything"
        edited.append(" ".join(parts))
    prints = TextPrints.of([*texts, *edited])
    found = {
        (min(i, j), max(i, j))
        for left, right, _ in prints.pairs(0.6, lambda left, right: left != right)
        for i, j in zip(left.tolist(), right.tolist(), strict=True)
    }
    planted = {(place, 1000 + place) for place in range(200)}
    assert len(found & planted) >= 195
    exact = [shingles(text) for text in [*texts, *edited]]
    assert all(len(exact[i] & exact[j]) >= 0.6 * len(exact[i] | exact[j]) for i, j in found)


def test_short_texts_are_near_only_if_all_letters_are_equal() -> None:
    prints = TextPrints.of(["i love you", "i hate you", "I LOVE you!!", "\U0001f525", "\U0001f525", "  "])
    assert prints.jaccard(np.array([0, 0]), np.array([1, 2])).tolist() == [0, 1]
    assert prints.code_S[3] == prints.code_S[4] != 0
    assert prints.code_S[5] == 0
    few = TextPrints.of(["No.", "no!!", "no \U0001f4b0", "\U0001f4b0 = no", "..."])
    assert few.code_S[0] == few.code_S[1] != few.code_S[2] == few.code_S[3]
    assert few.code_S[4] not in (0, few.code_S[0])
