"""Comparison of models on rows that represent several items each: equal to scikit-learn's metrics and to repeated rows."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, f1_score, precision_score, recall_score

from vigil_data.errors import UserError
from vigil_evaluation.comparison.alignment import ScoredModel, align
from vigil_evaluation.comparison.compare import compare
from vigil_evaluation.comparison.prediction_flips import effective_flips, mcnemar
from vigil_evaluation.comparison.results import Comparison, ReleaseGate
from vigil_evaluation.specs import EvaluationSpec

QUICK = EvaluationSpec(replicates=200)
ALL = ReleaseGate(metrics=("average_precision", "recall", "precision", "f1", "accuracy", "false_positive_rate", "brier"))


def model(table: pa.Table, name: str = "a", threshold: float = 0.5) -> ScoredModel:
    return ScoredModel(name, table, ("x",), {"x": threshold})


def world(seed: int, items: int = 5000, lost: float = 0.0, *, review: bool = True) -> tuple[pa.Table, pa.Table]:
    """Return two models' predictions of what a review labels: all items that the champion scores at .5 or more, and a tenth.

    Args:
        seed: where chance comes from.
        items: size of the population.
        lost: fewer log odds between positives and negatives of the challenger; with 0 the two models are equally good.
        review: whether a review chose the rows; all items otherwise.
    """
    random = np.random.default_rng(seed)
    targets = (random.random(items) < 0.2).astype(float)
    shared = random.normal(size=items)
    odds = [(3 - less) * targets - 2 + 0.8 * shared + random.normal(size=items) for less in (0.0, lost)]
    scores = [1 / (1 + np.exp(-of)) for of in odds]
    stated = np.where(scores[0] >= 0.5, 1.0, 0.1) if review else np.ones(items)
    rows = np.flatnonzero(random.random(items) < stated)
    language = random.choice(["de", "en", "fr"], items)[rows]
    columns = {"id": rows.astype(str), "target.x": pa.array(targets[rows], pa.float32()), "language": language}
    columns |= {"inclusion_probability": stated[rows]} if review else {}
    return tuple(pa.table(columns | {"probability.x": pa.array(of[rows], pa.float32())}) for of in scores)  # type: ignore[return-value]


def cells(found: Comparison) -> dict[tuple[str, str | None], tuple[float | None, float | None]]:
    return {(cell.metric, cell.value): (cell.champion, cell.challenger) for cell in found.cells}


# Oracles


def test_compare_of_weighted_rows_equals_scikit_learn() -> None:
    tables = world(0, lost=0.8)
    found, _ = compare(model(tables[0]), model(tables[1], "b", 0.4), QUICK, ALL)
    assert found.weighted
    assert len(found.cells) == 7 * 4
    measures: dict[str, Callable[..., float]] = {
        "average_precision": lambda t, p, _, w: average_precision_score(t, p, sample_weight=w),
        "recall": lambda t, _, f, w: recall_score(t, f, sample_weight=w),
        "precision": lambda t, _, f, w: precision_score(t, f, sample_weight=w),
        "f1": lambda t, _, f, w: f1_score(t, f, sample_weight=w),
        "accuracy": lambda t, _, f, w: accuracy_score(t, f, sample_weight=w),
        "false_positive_rate": lambda t, _, f, w: 1 - recall_score(1 - t, ~f, sample_weight=w),
        "brier": lambda t, p, _, w: brier_score_loss(t, p, sample_weight=w),
    }
    targets, language = tables[0]["target.x"].to_numpy(), np.array(tables[0]["language"].to_pylist())
    weights = 1 / tables[0]["inclusion_probability"].to_numpy()
    for cell in found.cells:
        rows = np.ones(len(targets), bool) if cell.column is None else language == cell.value
        wanted = []
        for table, cut in zip(tables, (0.5, 0.4), strict=True):
            scores = table["probability.x"].to_numpy()[rows].astype(float)
            wanted.append(measures[cell.metric](targets[rows], scores, scores >= cut, weights[rows]))
        assert (cell.champion, cell.challenger) == pytest.approx(wanted, abs=1e-9)
        assert cell.known == rows.sum()
        assert cell.interval is not None
        assert cell.interval.low <= (cell.delta or 0.0) <= cell.interval.high


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 10**6))
def test_compare_of_weighted_rows_equals_repeated_rows(seed: int) -> None:
    tables = [table.drop_columns(["inclusion_probability"]) for table in world(seed, 600, lost=0.5)]
    weights = np.random.default_rng(seed).integers(1, 5, tables[0].num_rows)
    rows = np.repeat(np.arange(len(weights)), weights)
    weighted, repeated = [], []
    for name, table in zip("ab", tables, strict=True):
        weighted.append(model(table.append_column("weight", pa.array(weights)), name))
        taken = table.take(rows)
        repeated.append(model(taken.set_column(0, "id", pa.array(np.arange(len(rows)).astype(str))), name))
    found, wanted = (compare(*of, QUICK, ALL)[0] for of in (weighted, repeated))
    here, there = cells(found), cells(wanted)
    for key in here.keys() & there.keys():
        for one, other in zip(here[key], there[key], strict=True):
            assert one is None or other is None or one == pytest.approx(other, abs=1e-9), key


def test_compare_of_equally_weighted_rows_equals_that_of_rows() -> None:
    tables = world(1, 2000, lost=0.5, review=False)
    plain, flips = compare(model(tables[0]), model(tables[1], "b"), QUICK, ALL)
    sevens = [table.append_column("weight", pa.array(np.full(table.num_rows, 7.0))) for table in tables]
    found, other = compare(model(sevens[0]), model(sevens[1], "b"), QUICK, ALL)
    assert flips.num_rows == other.num_rows
    assert found.flips.labels["x"].p_value == pytest.approx(plain.flips.labels["x"].p_value)
    assert len(found.cells) == len(plain.cells) > 7
    for one, two in zip(found.cells, plain.cells, strict=True):
        assert (one.metric, one.value, one.verdict, one.known) == (two.metric, two.value, two.verdict, two.known)
        numbers = [(*(cell.interval or ()), cell.delta, cell.p_worse, cell.p_better) for cell in (one, two)]
        assert numbers[0] == pytest.approx(numbers[1], abs=2e-3)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_equals_the_binomial_test(worse: int, better: int) -> None:
    wanted = binomtest(worse, worse + better).pvalue if worse + better else None
    assert mcnemar(worse, better) == (None if wanted is None else pytest.approx(wanted, abs=1e-12))


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0.01, 100))
def test_effective_flips_of_equal_weights_are_flips(worse: int, better: int, weight: float) -> None:
    found = effective_flips(np.full(worse, weight), np.full(better, weight), weight)
    assert found == pytest.approx((worse, better))
    seen = effective_flips(np.full(worse, weight), np.full(better, weight), 10 * weight)
    assert sum(seen) < sum(found) or not worse + better, "a flip of ten times the weight may be unobserved"


# Alignment


def test_align_takes_the_weights_of_one_table_for_both() -> None:
    one, other = world(2, 400)
    bare = other.drop_columns(["inclusion_probability"]).take(np.arange(other.num_rows)[::-1])
    wanted = align(model(one), model(other, "b"))
    assert wanted.summary.weights_of_one is None
    for pair, side in (((one, bare), "champion"), ((bare, one), "challenger")):
        found = align(model(pair[0]), model(pair[1], "b"))
        assert found.summary.weights_of_one == side
        weights = dict(zip(found.table["id"].to_pylist(), found.weights_N, strict=True))
        assert weights == dict(zip(wanted.table["id"].to_pylist(), wanted.weights_N, strict=True))


def test_align_refuses_different_sampling_designs() -> None:
    one, other = world(3, 400)
    place = other.column_names.index("inclusion_probability")
    stated = other["inclusion_probability"].to_numpy().copy()
    # The same design in other columns and precision is the same design.
    same = other.set_column(place, "weight", pa.array((1 / stated).astype(np.float32)))
    assert align(model(one), model(same, "b")).summary.columns_that_differ == {}
    stated[5] = 0.3
    with pytest.raises(UserError) as caught:
        align(model(one), model(other.set_column(place, "inclusion_probability", pa.array(stated)), "b"))
    (line,) = caught.value.lines
    before, id_ = 1 / one["inclusion_probability"][5].as_py(), one["id"][5].as_py()
    assert line == (
        "columns inclusion_probability and weight: 1 items represent different numbers of items, such as "
        f"{id_}: {before:g} in a and 3.33333 in b; state one sampling design for both, or leave the columns out of one table"
    )
    stated[5] = 2.0
    wrong = other.set_column(place, "inclusion_probability", pa.array(stated))
    with pytest.raises(UserError, match="b: predictions: column inclusion_probability has 1 values"):
        align(model(one), model(wrong, "b"))


def test_compare_names_a_cell_with_too_few_effective_rows() -> None:
    table = world(4, 3000, review=False)[0].slice(0, 200)
    targets = np.repeat([0.0, 1.0], [190, 10])
    table = table.set_column(1, "target.x", pa.array(targets, pa.float32()))
    heavy = table.append_column("weight", pa.array(np.where(np.arange(200) == 195, 1000.0, 1.0)))
    found, _ = compare(model(heavy), model(heavy, "b"), QUICK, ReleaseGate(metrics=("recall", "false_positive_rate")))
    cell = next(cell for cell in found.of("not comparable") if (cell.metric, cell.column) == ("recall", None))
    assert (
        cell.why == "needs 5 effective positives: 10 positive and 190 negative are known, but few of them have most of the weight"
    )


# Simulations


def deltas(tables: Sequence[pa.Table], spec: EvaluationSpec, gate: ReleaseGate) -> dict[str, Any]:
    found, _ = compare(model(tables[0]), model(tables[1], "b"), spec, gate)
    return {cell.metric: cell for cell in found.cells if cell.column is None}


@pytest.mark.prove
def test_paired_differences_of_weighted_rows_cover(proofs: Callable[[int, int], int]) -> None:
    tries, lost = proofs(12, 1000), 0.4
    spec = EvaluationSpec(replicates=proofs(200, 500), slices=("none",))
    truth = {
        name: cell.delta for name, cell in deltas(world(10**6, proofs(50_000, 1_000_000), lost, review=False), QUICK, ALL).items()
    }
    held: dict[str, list[bool]] = {name: [] for name in ALL.metrics}
    mean: dict[str, list[tuple[float, float]]] = {name: [] for name in ALL.metrics}
    for seed in range(tries):
        tables = world(seed, 10_000, lost)
        plain = deltas([table.drop_columns(["inclusion_probability"]) for table in tables], QUICK, ALL)
        for name, cell in deltas(tables, spec, ALL).items():
            held[name].append(cell.interval.low <= truth[name] <= cell.interval.high)
            mean[name].append((cell.delta, plain[name].delta))
    # What the number of tries scatters.
    slack = (1.5 if tries >= 1000 else 3.5) * np.sqrt(0.05 * 0.95 / tries)
    for name in ALL.metrics:
        weighted, unweighted = np.mean(mean[name], axis=0)
        print(
            f"{name}: true difference {truth[name]:+.4f}, weighted {weighted:+.4f}, unweighted {unweighted:+.4f}, "
            f"held {np.mean(held[name]):.1%}"
        )
    for name in ALL.metrics:
        assert 0.93 - slack <= np.mean(held[name]) <= 0.97 + slack, name


@pytest.mark.prove
def test_compare_of_weighted_rows_fails_equal_models_no_more_often_than_stated(proofs: Callable[[int, int], int]) -> None:
    tries, gate = proofs(4, 300), ReleaseGate(tolerance=0.0)
    failed = plain = 0
    for seed in range(tries):
        tables = world(seed)
        failed += not compare(model(tables[0]), model(tables[1], "b"), EvaluationSpec(), gate)[0].passed
        bare = [table.drop_columns(["inclusion_probability"]) for table in tables]
        plain += not compare(model(bare[0]), model(bare[1], "b"), EvaluationSpec(), gate)[0].passed
    print(f"equal models that fail: {failed} of {tries} weighted, {plain} unweighted")
    assert failed <= max(0.05 * tries, 1)
    assert plain > 0.9 * tries, "the champion chose the rows, all of those that it flags"


@pytest.mark.prove
def test_compare_allows_for_changes_of_heavy_rows_that_are_not_in_the_sample(proofs: Callable[[int, int], int]) -> None:
    """The challenger loses 10 of 300 positives that are all labelled, and gains 10 of 500 whose tenth is labelled."""
    tries, failed = proofs(20, 500), 0
    gate, spec = ReleaseGate(metrics=("recall",), tolerance=0.0), EvaluationSpec(replicates=200, slices=("none",))
    targets, stated = np.repeat([1.0, 0.0], [800, 200]), np.repeat([1.0, 0.1, 1.0], [300, 500, 200])
    before, after = np.repeat([0.9, 0.6, 0.1, 0.6, 0.1], [290, 10, 10, 490, 200]), np.empty(1000)
    after[:] = before
    after[290:310] = np.repeat([0.4, 0.6], 10)
    for seed in range(tries):
        rows = np.flatnonzero(np.random.default_rng(seed).random(1000) < stated)
        columns = {
            "id": rows.astype(str),
            "target.x": pa.array(targets[rows], pa.float32()),
            "inclusion_probability": stated[rows],
        }
        tables = (pa.table(columns | {"probability.x": pa.array(of[rows], pa.float32())}) for of in (before, after))
        found, _ = compare(*(model(table, name) for table, name in zip(tables, "ab", strict=True)), spec, gate)
        failed += not found.passed
    print(f"models of equal recall that fail: {failed} of {tries}")
    assert failed <= max(0.05 * tries, 1)
