"""label_selection: silent on random samples, loud on reviews that follow a score, a column or other probabilities than stated."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from scipy.stats import binom, binomtest, fisher_exact

from vigil_evaluation.sampling_weights import SamplingWeights
from vigil_evaluation.stats.selection_tests import FALSE_ALARM_RATE, LabelSelection, _fisher, _poisson, label_selection

EQUAL = SamplingWeights()


class Coded(NamedTuple):
    """A column as integers."""

    values: list[str | None]
    codes_N: np.ndarray


class Traffic(NamedTuple):
    """A table: probabilities of correlated labels, two columns that go with them, and units."""

    probabilities_NL: np.ndarray
    columns: dict[str, Coded]
    units_N: np.ndarray | None


def traffic(random: np.random.Generator, rows: int, labels: int, unit: int = 1) -> Traffic:
    units = np.sort(random.integers(0, rows // unit, rows)).astype(np.int32) if unit > 1 else np.arange(rows)
    author = random.normal(size=(rows + 1, 1))[units]
    logits = author + 0.7 * random.normal(size=(rows, 1)) + random.normal(size=(rows, labels)) - 2.5
    market = np.searchsorted([-0.5, 0.7, 1.5], author[:, 0] + 0.5 * random.normal(size=rows))
    frequencies = 1 / np.arange(1, 41)
    source = random.choice(40, rows, p=frequencies / frequencies.sum())
    columns = {"market": Coded(["a", "b", None, "d"], market), "source": Coded([f"s{i}" for i in range(40)], source)}
    return Traffic(1 / (1 + np.exp(-logits)), columns, units if unit > 1 else None)


def found(table: Traffic, known_NL: np.ndarray, weights: SamplingWeights = EQUAL) -> LabelSelection:
    labels = [f"label{i}" for i in range(known_NL.shape[1])]
    selection = label_selection(known_NL, table.probabilities_NL, labels, table.columns, table.units_N, weights)
    assert selection is not None
    return selection


def chosen(random: np.random.Generator, table: Traffic, probability_N: np.ndarray) -> np.ndarray:
    """Rows chosen with these probabilities; whole units if the table has some."""
    units = table.units_N if table.units_N is not None else np.arange(len(probability_N))
    return random.random(len(probability_N) + 1)[units] < probability_N


DESIGNS = ("a share of the rows", "each label by itself", "as stated: high scores and a tenth", "as stated: three strata")


def sampled(random: np.random.Generator, table: Traffic, design: str) -> tuple[np.ndarray, SamplingWeights]:
    """Known targets of a random sample, or of a sample drawn as stated, in which one in twenty targets stays unknown."""
    rows, labels = table.probabilities_NL.shape
    if design == DESIGNS[0]:
        return np.tile(chosen(random, table, np.full(rows, random.uniform(0.02, 0.98)))[:, None], labels), SamplingWeights()
    if design == DESIGNS[1]:
        each = [chosen(random, table, np.full(rows, random.uniform(0.02, 0.98))) for _ in range(labels)]
        return np.stack(each, axis=1), SamplingWeights()
    score_N = table.probabilities_NL[:, 0]
    if table.units_N is not None:  # a unit is chosen by its highest score
        highest = np.zeros(rows + 1)
        np.maximum.at(highest, table.units_N, score_N)
        score_N = highest[table.units_N]
    stated = np.where(score_N >= 0.5, 1.0, 0.1)
    if design == DESIGNS[3]:
        stated = np.array([0.05, 0.3, 0.9])[np.searchsorted([0.1, 0.4], score_N)]
    known = chosen(random, table, stated)[:, None] & (random.random((rows, labels)) < 0.95)
    return known, SamplingWeights(1 / stated, None)


@pytest.mark.prove
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("unit", [1, 5, 50])
def test_label_selection_is_silent_on_random_samples(design: str, unit: int, proofs: Callable[[int, int], int]) -> None:
    tries = proofs(60, 2000)
    for rows, labels in ((200, 2), (2_000, 1), (2_000, 6), (20_000, 2)):
        random, alarms, tests = np.random.default_rng([rows, labels]), 0, 0
        many = tries if rows < 20_000 else tries // 3
        for _ in range(many):
            table = traffic(random, rows, labels, unit)
            known, weights = sampled(random, table, design)
            if (known.any(axis=0) & ~known.all(axis=0)).any():
                selection = found(table, known, weights)
                alarms += bool(selection.dependences)
                tests += selection.tests
        print(
            f"{design}; units of {unit}; {rows} rows, {labels} labels: {alarms} of {many} tables alarmed, {tests // many} tests"
        )
        # More alarms than this have a probability below 0.1 % at the stated rate.
        assert alarms <= binom.ppf(0.999, many, FALSE_ALARM_RATE)


REVIEWS = {  # share known of the items with probability ≥ 0.5 (5.6 %), and of the others
    "all, and a tenth": (1.0, 0.1),
    "half, and a tenth": (0.5, 0.1),
    "three in ten, and two": (0.3, 0.2),
    "one in four, and one in five": (0.25, 0.2),
}


@pytest.mark.prove
@pytest.mark.parametrize("review", REVIEWS)
def test_label_selection_detects_reviews_by_score(review: str, proofs: Callable[[int, int], int]) -> None:
    tries, (high, low) = proofs(20, 500), REVIEWS[review]
    for rows, least in ((300, {1.0: 0.95}), (2_000, {1.0: 1.0, 0.5: 0.95}), (20_000, {1.0: 1.0, 0.5: 1.0, 0.3: 0.85})):
        random, detected = np.random.default_rng(rows), 0
        for _ in range(tries):
            table = traffic(random, rows, 2)
            known = chosen(random, table, np.where(table.probabilities_NL[:, 0] >= 0.5, high, low))
            detected += "label0" in found(table, np.stack([known, known], axis=1)).labels
        print(f"known: {review}; {rows} rows: detected in {detected} of {tries} tables")
        assert detected >= least.get(high, 0) * tries - 1


def mean_of_unit(table: Traffic) -> np.ndarray:
    assert table.units_N is not None
    return np.bincount(table.units_N, table.probabilities_NL[:, 0]) / np.maximum(np.bincount(table.units_N), 1)


OTHER_REVIEWS: dict[str, Callable[[Traffic], np.ndarray]] = {
    "by market": lambda table: np.where(table.columns["market"].codes_N == 1, 0.4, 0.2),
    "of uncertain items": lambda table: np.where(np.abs(table.probabilities_NL[:, 0] - 0.3) < 0.1, 0.5, 0.2),
    "by the score of another label": lambda table: np.where(table.probabilities_NL[:, 1] >= 0.5, 1.0, 0.2),
    "smoothly rising with the score": lambda table: 0.1 + 0.8 * table.probabilities_NL[:, 0],
    "of whole units, by score": lambda table: np.where(mean_of_unit(table)[table.units_N] > 0.3, 0.9, 0.2),
}


@pytest.mark.prove
@pytest.mark.parametrize("review", OTHER_REVIEWS)
def test_label_selection_detects_other_reviews(review: str, proofs: Callable[[int, int], int]) -> None:
    tries, random, detected = proofs(10, 500), np.random.default_rng(3), 0
    for _ in range(tries):
        table = traffic(random, 3_000, 2, 5 if review.startswith("of whole units") else 1)
        known = chosen(random, table, OTHER_REVIEWS[review](table))
        detected += found(table, np.stack([known, known], axis=1)).labels == ["label0", "label1"]
    print(f"{review}: detected in {detected} of {tries} tables of 3,000 rows")
    assert detected >= 0.95 * tries - 1


@pytest.mark.prove
@pytest.mark.parametrize("unit", [1, 5])
def test_label_selection_detects_wrong_inclusion_probabilities(unit: int, proofs: Callable[[int, int], int]) -> None:
    tries = proofs(20, 500)
    for truth, least in ((0.2, 0.95), (0.15, 0.0), (0.05, 0.9 if unit == 1 else 0.4)):
        random, detected = np.random.default_rng(4), 0
        for _ in range(tries):
            table = traffic(random, 10_000, 1, unit)
            _, weights = sampled(random, table, DESIGNS[2])
            assert weights.label_N is not None
            stated = 1 / weights.label_N
            known = chosen(random, table, np.where(stated == 1, 1, truth))
            detected += bool(found(table, known[:, None], weights).labels)
        print(f"a tenth stated, {truth:.0%} chosen, units of {unit}: detected in {detected} of {tries} tables of 10,000 rows")
        assert detected >= least * tries - 1


def test_label_selection_names_a_review_of_high_probabilities() -> None:
    random = np.random.default_rng(1)
    table = traffic(random, 4_000, 2)
    high = table.probabilities_NL[:, 1] >= 0.5
    known = chosen(random, table, np.where(high, 0.93, 0.1))[:, None] & np.array([True, True])
    selection = found(table, known)
    assert selection.labels == ["label0", "label1"]
    first = (
        selection.dependences[-1]
        if selection.dependences[0].label == "label1"
        else next(one for one in selection.dependences if one.label == "label1")
    )
    assert first.column == "probability.label1"
    assert first.part == "probability.label1 ≥ 0.5"
    assert (first.inside.items, first.inside.known) == (high.sum(), (known[:, 1] & high).sum())
    assert (first.outside.items, first.outside.known) == ((~high).sum(), (known[:, 1] & ~high).sum())
    inside, outside = (f"{known[rows, 1].mean():.0%}".replace("%", " %") for rows in (high, ~high))
    assert selection.lines[1] == (
        f"label label1: the labelled items are not a random sample: {inside} of the items with probability.label1 ≥ 0.5 have a "
        f"known target, and {outside} of the others"
    )


def test_label_selection_names_probabilities_that_are_not_those_stated() -> None:
    random = np.random.default_rng(2)
    table = traffic(random, 6_000, 1)
    high = table.probabilities_NL[:, 0] >= 0.5
    known = chosen(random, table, np.where(high, 1, 0.3))
    (line,) = found(table, known[:, None], SamplingWeights(np.where(high, 1.0, 10.0), None)).lines
    assert line == (
        f"label label0: the labelled items were not chosen as inclusion_probability states: {high.sum()} items with "
        f"probability.label0 ≥ 0.5 have a known target where {high.sum()} are stated, and {(known & ~high).sum():,} others where "
        f"{(~high).sum() / 10:.0f} are stated"
    )


def test_label_selection_ignores_differences_without_effect_in_a_huge_table() -> None:
    random, rows = np.random.default_rng(3), 2_000_000
    scores = random.random(rows)
    known = random.random(rows) < np.where(scores >= 0.5, 0.504, 0.5)
    selection = label_selection(known[:, None], scores[:, None], ["a"])
    assert selection is not None
    assert selection.dependences == []
    (both,) = np.array([[known[side].sum(), side.sum()] for side in (scores >= 0.5, scores < 0.5)])[None]
    assert _fisher(both[None, :, 0].astype(float), both[None, :, 1].astype(float))[0] < 1e-5, "the difference is significant"
    known = random.random(rows) < np.where(scores >= 0.5, 0.52, 0.5)
    selection = label_selection(known[:, None], scores[:, None], ["a"])
    assert selection is not None
    assert selection.labels == ["a"]


def test_label_selection_has_nothing_to_test_without_both_known_and_unknown_targets() -> None:
    scores, known = np.random.default_rng(0).random((100, 2)), np.ones((100, 2), bool)
    known[:, 1] = False
    assert label_selection(known, scores, ["a", "b"]) is None
    assert label_selection(known[:0], scores[:0], ["a", "b"]) is None
    # A row without an inclusion probability is left out, and the labelled sample by itself shows nothing.
    known[::2] = False
    known[1::2] = True
    assert label_selection(known, scores, ["a", "b"], None, None, SamplingWeights(np.where(known[:, 0], 2.0, 0.0), None)) is None
    weights_N = np.full(100, 3.0)
    assert label_selection(known, scores, ["a", "b"], None, None, SamplingWeights(weights_N, weights_N)) is not None


def test_label_selection_takes_weights_of_rows_for_no_inclusion_probabilities() -> None:
    random = np.random.default_rng(5)
    table = traffic(random, 4_000, 1)
    known = chosen(random, table, np.where(table.probabilities_NL[:, 0] >= 0.5, 0.9, 0.1))[:, None]
    weights = random.uniform(1, 5, 4_000)
    taken = SamplingWeights(weights, weights).take(np.arange(4_000))
    assert found(table, known, taken) == found(table, known)
    assert found(table, known).labels == ["label0"]


@pytest.mark.parametrize(
    ("known", "items"), [((3, 40), (20, 900)), ((20, 1), (20, 30)), ((5, 5), (50, 50)), ((0, 300), (30, 1000))]
)
def test_label_selection_p_values_equal_scipy(known: tuple[int, int], items: tuple[int, int]) -> None:
    table = [[known[0], items[0] - known[0]], [known[1], items[1] - known[1]]]
    expected = 2 * min(fisher_exact(table, alternative=side).pvalue for side in ("less", "greater"))
    assert _fisher(np.array([known], float), np.array([items], float))[0] == pytest.approx(min(expected, 1), rel=1e-9)
    share = items[0] / sum(items)
    expected = 2 * min(binomtest(known[0], sum(known), share, side).pvalue for side in ("less", "greater"))
    assert _poisson(np.array([known], float), np.array([items], float))[0] == pytest.approx(min(expected, 1), rel=1e-9)
