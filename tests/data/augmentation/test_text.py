"""Perturbations of text do what they say, and swapped identity terms stay apart."""

import re
from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_data.augmentation import text as perturbations
from vigil_data.augmentation.specs import IdentitySwap, TextAugmentation
from vigil_data.augmentation.text import PERTURBATIONS, augment_texts, swapped_terms

sentence = st.lists(st.text(st.sampled_from("abcdeghiostuxyzABCEOT"), min_size=1, max_size=9), min_size=1, max_size=8).map(
    " ".join
)


@given(sentence, st.integers(0, 50), st.integers(1, 3))
def test_perturbation_typo_changes_one_letter_in_each_chosen_word(text, seed, words):
    made = perturbations.typos(text, Random(seed), words)
    long = [w for w in text.split() if len(w) >= 4]
    differing = [(a, b) for a, b in zip(text.split(), made.split(), strict=True) if a != b]
    assert len(differing) == min(words, len(long))
    for before, after in differing:
        assert after[0] == before[0]
        assert abs(len(after) - len(before)) <= 1
        assert distance(before, after) == 1
    assert perturbations.typos(text, Random(seed), words) == made


def distance(a, b):
    """Damerau-Levenshtein, the optimal string alignment form, by its definition."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                table[i, j] = min(table[i, j], table[i - 2, j - 2] + 1)
    return table[-1, -1]


@given(sentence, st.integers(0, 50), st.floats(0.01, 1))
def test_perturbation_substitutes_can_be_mapped_back(text, seed, share):
    back = {"4": "a", "3": "e", "1": "i", "0": "o", "5": "s", "7": "t"}
    assert "".join(back.get(c, c) for c in perturbations.leetspeak(text)).lower() == text.lower()
    made = perturbations.homoglyphs(text, Random(seed), share)
    double = {other: letter for letter, other in perturbations.HOMOGLYPHS.items()}
    assert "".join(double.get(c, c) for c in made) == text
    possible = sum(c in perturbations.HOMOGLYPHS for c in text)
    changed = sum(a != b for a, b in zip(text, made, strict=True))
    assert changed == (min(possible, max(1, round(share * possible))))
    assert all(ord(other) > 127 for other in double)


@given(sentence)
def test_perturbation_spacing_and_casing_keep_every_letter(text):
    letters = text.replace(" ", "")
    assert perturbations.spacing(text, "join") == letters
    assert perturbations.spacing(text, "spread").replace(" ", "") == letters
    assert perturbations.spacing(text, "spread").replace("  ", "|").replace(" ", "").replace("|", " ") == text
    assert perturbations.spacing(text, "zero_width").replace("\u200b", "") == text
    for how in ("upper", "lower", "alternate"):
        assert perturbations.casing(text, how).lower() == text.lower()
    alternate = perturbations.casing(text, "alternate").replace(" ", "")
    assert all(c.isupper() == bool(n % 2) for n, c in enumerate(alternate))


@given(sentence, st.integers(0, 50))
def test_perturbation_stretching_repeats_one_vowel(text, seed):
    made = perturbations.stretching(text, Random(seed))
    vowels = sum(c in "aeiouAEIOU" for c in text)
    assert len(made) == len(text) + 3 * (vowels > 0)
    assert re.sub(r"(.)\1{3,}", r"\1", made) == re.sub(r"(.)\1{3,}", r"\1", made)
    assert sum((Counter(made) - Counter(text)).values()) == 3 * (vowels > 0)


def test_perturbation_replace_matches_complete_words_longest_first():
    assert perturbations.replace("cat and dog", {"cat": "dog", "dog": "cat"}) == "dog and cat"
    assert perturbations.replace("category cat", {"cat": "x"}) == "category x"
    assert perturbations.replace("at the bar at noon", {"at": "in", "at the bar": "outside"}) == "outside in noon"
    assert perturbations.replace("Dice", {"dice": "x"}) == "Dice"
    assert perturbations.replace("Dice", {"dice": "x"}, any_case=True) == "x"
    assert perturbations.replace("a (b) c", {"(b)": r"\1"}) == r"a \1 c"


@given(st.text(max_size=60), st.integers(0, 50), st.sampled_from(sorted(PERTURBATIONS)))
def test_perturbations_accept_any_text(text, seed, kind):
    assert PERTURBATIONS[kind](text, Random(seed)) == PERTURBATIONS[kind](text, Random(seed))


TERMS = {
    "adjective": {"gay": ("gay", "homosexual"), "straight": ("straight",), "deaf": ("deaf",)},
    "people": {"women": ("women", "girls"), "men": ("men",)},
}
SWAP = IdentitySwap(probability=1, terms=TERMS)
GROUP = {word: f"{kind} {group}" for kind, groups in TERMS.items() for group, words in groups.items() for word in words}


@given(st.integers(0, 200))
def test_swapped_terms_are_of_another_group_of_the_same_list_and_groups_stay_apart(seed):
    words = swapped_terms(SWAP, Random(seed))
    moved = {(GROUP[word], GROUP[other]) for word, other in words.items()}
    assert set(words) == set(GROUP)
    assert all(a != b and a.split()[0] == b.split()[0] for a, b in moved)
    assert len(moved) == len({a for a, _ in moved}) == len({b for _, b in moved}) == 5


def test_augment_texts_swaps_complete_words_alike_in_all_texts_of_an_item():
    spec = TextAugmentation(identity_swap=IdentitySwap(probability=1, terms={"people": {"women": ("women",), "men": ("men",)}}))
    assert augment_texts(("Women and MEN, womens", "no men"), spec, Random(0)) == ("Men and Women, womens", "no women")
    assert augment_texts(("nothing here",), spec, Random(0)) == ("nothing here",)


def test_augment_texts_swaps_at_its_probability():
    spec = TextAugmentation(identity_swap=SWAP.model_copy(update={"probability": 0.3}))
    swapped = sum(augment_texts(("men",), spec, Random(seed)) != ("men",) for seed in range(1000))
    assert swapped / 1000 == pytest.approx(0.3, abs=0.05)


def test_replace_ignores_letters_that_only_a_regular_expression_takes_for_others():
    assert perturbations.replace("men, me\u017f", {"mes": "x"}, any_case=True) == "men, me\u017f"


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, "terms needs at least one list"),
        ({"a": {"x": ("y",)}}, "terms.a needs at least two groups"),
        ({"a": {"x": ("y",), "z": ()}}, "terms.a.z has no term"),
        ({"a": {"x": ("y",), "z": ("Y",)}}, "terms names y more than once"),
    ],
)
def test_identity_swap_refuses_terms_that_cannot_be_swapped(terms, message):
    with pytest.raises(ValueError, match=message):
        IdentitySwap(terms=terms)
