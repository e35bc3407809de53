"""Multiple testing: against exact tests and known distributions; false alarms and power in simulation."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from vigil_evaluation.comparison.alignment import ScoredModel
from vigil_evaluation.comparison.compare import compare
from vigil_evaluation.comparison.results import ReleaseGate
from vigil_evaluation.specs import EvaluationSpec
from vigil_evaluation.stats.multiple_testing import CellStatistics, cell_statistics, holm, step_down


def test_cell_statistics_of_flips_in_one_direction_equal_the_exact_test():
    """With ``m`` flips, all for the worse, the normal tail of the statistic equals the exact one, 2**-m."""
    for flips in range(2, 40):
        for units in (flips, 2 * flips, 50 * flips):
            mean = flips / units
            error = np.sqrt(mean * (1 - mean) / units)
            found = cell_statistics(*(np.array([float(x)]) for x in (mean, error, units, flips)), np.array([True]))
            assert norm.sf(found.statistics[0]) == pytest.approx(2.0**-flips)
            assert found.statistics[0] <= found.bounds[0]


@given(st.integers(1, 60), st.integers(0, 60))
def test_cell_statistics_without_a_tolerance_are_mcnemars_exact_test(worse, better):
    units = 4 * (worse + better)
    mean = (worse - better) / units
    error = np.sqrt(((worse + better) / units - mean**2) / units)
    found = cell_statistics(*(np.array([float(x)]) for x in (mean, error, units, worse + better)), np.array([True]))
    exact = binomtest(worse, worse + better, alternative="greater").pvalue
    assert norm.sf(found.statistics[0]) == pytest.approx(exact, rel=1e-6)


def test_cell_statistics_without_differences_are_never_evidence():
    found = cell_statistics(np.array([0.0, -0.01]), np.zeros(2), np.full(2, 50.0), np.zeros(2), np.array([True, False]))
    assert step_down([(found, 1)], np.zeros((100, 2), np.float32), 500, 0)[0].tolist() == [1.0, 1.0]


def test_step_down_corrects_for_the_largest_of_many_normal_variables():
    """Independent cells: the corrected p-value of the largest of C is 1 - Φ(z)**C; the next steps down."""
    random = np.random.default_rng(0)
    cells, statistics = 40, np.concatenate([[4.0, 3.0], np.zeros(38)])
    deviations = random.standard_normal((1000, cells)).astype(np.float32)
    (p_values,) = step_down([(CellStatistics(statistics, np.full(cells, 50.0)), 1)], deviations, 20_000, 1)
    assert p_values[0] == pytest.approx(1 - norm.cdf(4.0) ** 40, abs=0.001)
    assert p_values[1] == pytest.approx(1 - norm.cdf(3.0) ** 39, rel=0.1)
    alike = np.repeat(deviations[:, :1], cells, axis=1)
    assert step_down([(CellStatistics(statistics, np.full(cells, 50.0)), -1)], alike, 20_000, 1)[0][1] == pytest.approx(
        norm.sf(3.0), abs=0.001
    )


def test_step_down_ignores_cells_that_cannot_raise_an_alarm():
    random = np.random.default_rng(0)
    statistics, bounds = np.concatenate([[3.0], np.zeros(999)]), np.concatenate([[9.0], np.full(999, 1.5)])
    deviations = random.standard_normal((1000, 1000)).astype(np.float32)
    few = step_down([(CellStatistics(statistics, bounds), 1)], deviations, 2000, 0)[0][0]
    many = step_down([(CellStatistics(statistics, np.full(1000, 9.0)), 1)], deviations, 2000, 0)[0][0]
    assert few < 0.003
    assert many > 0.5


# False alarms and power

SHARES = {
    "language": (0.4, 0.25, 0.15, 0.1, 0.05, 0.02, 0.02, 0.01),
    "market": (0.35, 0.3, 0.2, 0.15),
    "content_type": (0.5, 0.3, 0.2),
}
PLANTED = "language5"
"""A slice of 2 % of the items."""

PREVALENCE = {"scams": 0.1, "tobacco": 0.3, "weapons": 0.03}


def world(seed, items, authors=0, lowered=0.0, lost=0.0, tiny=0):
    """Two models of equal quality that share four fifths of the variance of their noise; the second one may lose quality.

    Args:
        seed: of everything.
        items: how many; a fifth of the targets is unknown.
        authors: who make half the noise that the models do not share; none if 0.
        lowered: how much lower the challenger scores positives of the planted slice, in standard deviations.
        lost: share of the positives above the threshold that the challenger loses in all slices.
        tiny: further slices, of equal size.
    """
    random = np.random.default_rng(seed)
    columns = {name: np.array([f"{name}{i}" for i in random.choice(len(p), items, p=p)]) for name, p in SHARES.items()}
    if tiny:
        columns["tiny"] = random.integers(0, tiny, items).astype(str)
    by = random.integers(0, max(authors, 1), items)
    if authors:
        columns["author"] = by.astype(str)
    first, second = {"id": [str(i) for i in range(items)]}, {"id": [str(i) for i in range(items)]}
    for label, share in PREVALENCE.items():
        positive = random.random(items) < share
        known = random.random(items) < 0.8
        shared = 2.2 * positive - 2.1 + np.sqrt(0.8) * random.normal(size=items)
        for side, table in enumerate((first, second)):
            own = random.normal(size=items)
            if authors:
                own = np.sqrt(0.5) * own + np.sqrt(0.5) * random.normal(size=authors)[by]
            scores = shared + np.sqrt(0.2) * own
            if side:
                scores -= lowered * (positive & (columns["language"] == PLANTED))
                scores[positive & (scores >= 0) & (random.random(items) < lost)] = -3.0
            table[f"target.{label}"] = pa.array(positive.astype(np.float32), mask=~known)
            table[f"probability.{label}"] = pa.array((1 / (1 + np.exp(-scores))).astype(np.float32))
    shown = {name: values.tolist() for name, values in columns.items()}
    cuts = dict.fromkeys(PREVALENCE, 0.5)
    sides = ((name, pa.table(table | shown)) for name, table in (("a", first), ("b", second)))
    champion, challenger = (ScoredModel(name, table, tuple(PREVALENCE), cuts) for name, table in sides)
    return champion, challenger


def alarms(repetitions, gate=None, items=3000, first=0, **settings):
    """Number of repetitions in which the challenger fails, under the default settings."""
    failed = 0
    for seed in range(first, first + repetitions):
        found, _ = compare(
            *world(seed, items, **settings),
            EvaluationSpec(slices=("language", "market", "content_type") + (("tiny",) if settings.get("tiny") else ())),
            gate,
        )
        failed += not found.passed
    return failed


@pytest.mark.prove
@pytest.mark.parametrize(
    ("gate", "settings"),
    [
        (None, {}),
        (ReleaseGate(tolerance=0.0), {}),
        (ReleaseGate(tolerance=0.0), {"tiny": 60}),
        (ReleaseGate(tolerance=0.0), {"authors": 300}),
        (ReleaseGate(tolerance=0.02, metrics=("recall",)), {"lost": 0.02 / 0.55, "items": 6000}),
    ],
    ids=["default", "no tolerance", "tiny slices", "authors", "as much worse as is tolerated"],
)
def test_compare_fails_equal_models_no_more_often_than_stated(proofs, gate, settings, record_property):
    repetitions = proofs(2, 200)
    failed = alarms(repetitions, gate, **settings)
    record_property("failed", f"{failed} of {repetitions}")
    print(f"\n{settings} {gate}: {failed} of {repetitions} fail")
    assert failed <= max(0.05 * repetitions, 1)


def bolder(seed, items=3000, slices=60, prevalence=0.1):
    """Two constant models, equally far above and below the share of positives: their Brier scores are equal."""
    random = np.random.default_rng(seed)
    targets = (random.random(items) < prevalence).astype(np.float32)
    shown = {"id": [str(i) for i in range(items)], "language": random.integers(0, slices, items).astype(str), "target.x": targets}
    timid, bold = (
        shown | {"probability.x": np.float32(p) + 1e-5 * random.random(items)} for p in (prevalence / 2, prevalence * 1.5)
    )
    return (ScoredModel(name, pa.table(table), ("x",), {"x": 0.5}) for name, table in (("a", timid), ("b", bold)))


@pytest.mark.prove
def test_compare_accepts_a_bolder_model_where_a_class_is_missing_by_chance(proofs):
    """In small slices without a positive, the bolder model is worse on every item, by far more than the tolerance."""
    repetitions = proofs(10, 200)
    compared = (compare(*bolder(seed), EvaluationSpec(), ReleaseGate(metrics=("brier",)))[0] for seed in range(repetitions))
    failed = sum(not found.passed for found in compared)
    print(f"\nbolder: {failed} of {repetitions} fail")
    assert failed <= max(0.05 * repetitions, 1)


@pytest.mark.prove
def test_compare_catches_a_regression_in_a_slice_of_two_percent(proofs):
    repetitions = proofs(1, 50)
    caught = {}
    for items in (10_000, 20_000):
        for lowered in proofs((1.5,), (0.25, 0.5, 0.75, 1.0, 1.5)):
            named, elsewhere, loss = 0, 0, []
            for seed in range(repetitions):
                found, _ = compare(*world(1000 + seed, items, lowered=lowered), EvaluationSpec())
                cells = found.of("regression")
                named += any(cell.value == PLANTED for cell in cells)
                elsewhere += any(cell.value not in (PLANTED, None) for cell in cells)
                loss += [-c.gain for c in found.cells if (c.metric, c.label, c.value) == ("recall", "tobacco", PLANTED)]
            caught[items, lowered] = named
            print(f"\n{items} items, recall there {np.mean(loss):.2f} lower: {named} caught, {elsewhere} elsewhere")
    assert caught[10_000, 1.5] >= 0.95 * repetitions
    assert caught[20_000, 1.5] >= 0.95 * repetitions


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_rejects_what_its_steps_reject(p_values):
    found = holm(np.array(p_values))
    for level in (0.01, 0.05, 0.5):
        rejected, left = set(), sorted(range(len(p_values)), key=lambda i: p_values[i])
        while left and p_values[left[0]] * len(left) <= level:
            rejected.add(left.pop(0))
        assert set(np.flatnonzero(found <= level).tolist()) == rejected
