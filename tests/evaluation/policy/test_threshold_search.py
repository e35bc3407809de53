"""Statistics of policy compilation, compared with other ways to compute them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from vigil_evaluation.policy.constraint_tests import (
    ConstraintCounts,
    WeightSums,
    confidence_bounds,
    count_at_candidates,
    inverse_design_effect,
    metric_estimates,
    p_values,
)
from vigil_evaluation.policy.constraints import Rule
from vigil_evaluation.policy.infeasibility import closest_feasible_bound, required_items_factor
from vigil_evaluation.policy.shared_budget import BudgetRequest, allocate_budget, isotonic_positive_share, weighted_upper
from vigil_evaluation.policy.threshold_search import ThresholdCandidates, choose_candidates, passing_candidates


def rule(metric: str, bound: float, confidence: float = 0.95) -> Rule:
    return Rule("remove", "spam", None, metric, bound, confidence)


def counted(count: float, rows: float) -> ConstraintCounts:
    return ConstraintCounts(None, np.array([count]), np.array([rows]), np.ones(1))


@given(rows=st.integers(1, 400), share=st.floats(0, 1), bound=st.floats(0.01, 0.99))
def test_p_values_and_confidence_bounds_are_exact(rows: int, share: float, bound: float) -> None:
    count = round(share * rows)
    evidence = counted(count, rows)
    at_least = binom.sf(count - 1, rows, bound)
    assert p_values(rule("precision", bound), evidence)[0] == pytest.approx(at_least, abs=1e-9)
    assert p_values(rule("recall", bound), evidence)[0] == pytest.approx(at_least, abs=1e-9)
    assert p_values(rule("miss_rate", 1 - bound), evidence)[0] == pytest.approx(at_least, abs=1e-9)
    assert p_values(rule("false_positive_rate", bound), evidence)[0] == pytest.approx(binom.cdf(count, rows, bound), abs=1e-9)
    low, high = confidence_bounds(rule("precision", bound), evidence, 0.975)
    wanted = binomtest(count, rows).proportion_ci(0.95)
    assert (low[0], high[0]) == pytest.approx((wanted.low, wanted.high), abs=1e-7)
    missed = confidence_bounds(rule("miss_rate", bound), evidence, 0.975)
    assert (missed[0][0], missed[1][0]) == pytest.approx((1 - wanted.high, 1 - wanted.low), abs=1e-7)


def test_p_values_of_no_items_are_one() -> None:
    for metric in ("precision", "false_positive_rate", "recall", "miss_rate"):
        assert p_values(rule(metric, 0.5), counted(0, 0))[0] == 1
        assert np.isnan(metric_estimates(rule(metric, 0.5), counted(0, 0))[0])
    # One new positive may be missed.
    assert confidence_bounds(rule("expected_miss_rate", 0.5), counted(0, 0), 0.95)[1][0] == 1


@given(
    values=st.lists(st.integers(0, 30).map(lambda i: np.float32(i / 30)), min_size=1, max_size=60),
    below=st.sampled_from([np.inf, float(np.float32(0.7)), 0.5]),
    known=st.integers(0, 2**32),
)
def test_choose_candidates_lie_between_probabilities_and_below_the_stricter_action(
    values: list, below: float, known: int
) -> None:
    p = np.array(values, np.float32)
    mask = np.random.default_rng(known).random(len(p)) < 0.5
    found = choose_candidates(p, mask, below)
    t = found.thresholds_K
    assert (np.diff(t) < 0).all()
    assert (t.astype(np.float32) == t).all()
    for k, cut in enumerate(t):
        assert ((found.first_N <= k) == (p >= cut)).all()
        assert not np.isin(cut, p) or cut == 0 or not (p < cut).any() or (np.unique(p)[1:] - np.unique(p)[:-1]).min() < 1e-6
    # With few items every distinct probability is a candidate.
    assert len(t) == len(np.unique(p[p.astype(float) < below]))


@pytest.mark.parametrize("seed", range(5))
def test_count_at_candidates_equals_a_loop(seed: int) -> None:
    random = np.random.default_rng(seed)
    p = (random.integers(0, 50, 300) / 50).astype(np.float32)
    positive, known, group = random.random(300) < p, random.random(300) < 0.7, random.random(300) < 0.5
    found = choose_candidates(p, known, np.inf)
    groups = [("all", None), ("some", group)]
    precision = count_at_candidates(found.first_N, len(found.thresholds_K), known, positive & known, units_M=None, groups=groups)
    rate = count_at_candidates(found.first_N, len(found.thresholds_K), known & ~positive, None, units_M=None, groups=groups)
    for within, right, hit in zip((np.ones(300, bool), group), precision, rate, strict=True):
        for k, cut in enumerate(found.thresholds_K):
            reached = (p >= cut) & known & within
            assert (right.count_K[k], right.rows_K[k]) == ((reached & positive).sum(), reached.sum())
            assert (hit.count_K[k], hit.rows_K[k]) == ((reached & ~positive).sum(), (known & ~positive & within).sum())


def test_inverse_design_effect_is_that_of_the_variance() -> None:
    random = np.random.default_rng(0)
    units = np.repeat(np.arange(400), random.integers(1, 9, 400)).astype(np.int32)
    shares, effects = [], []
    for _ in range(400):
        # Either most items of an author are positive, or few.
        rate = np.where(random.random(400) < 0.5, 0.8, 0.2)[units]
        outcome = random.random(len(units)) < rate
        shares.append(outcome.mean())
        effects.append(1 / inverse_design_effect(outcome, units))
    wanted = np.var(shares) / (0.25 / len(units))
    assert np.mean(effects) == pytest.approx(wanted, rel=0.15)
    assert inverse_design_effect(random.random(len(units)) < 0.5, None) == 1


def test_count_at_candidates_with_units_of_one_item_changes_nothing() -> None:
    random = np.random.default_rng(0)
    p = random.random(500).astype(np.float32)
    positive, known = random.random(500) < p, np.ones(500, bool)
    found = choose_candidates(p, known, np.inf)
    count = len(found.thresholds_K)
    plain, alone = (
        count_at_candidates(found.first_N, count, known, positive, units_M=units, groups=[(None, None)])[0]
        for units in (None, np.arange(500, dtype=np.int32))
    )
    assert (plain.effective_K == alone.effective_K).all()


def test_passing_candidates_of_a_column_pass_where_each_value_passes() -> None:
    good, bad = (ConstraintCounts(name, np.array([n]), np.array([1000.0]), np.ones(1)) for name, n in (("en", 2.0), ("de", 9.0)))
    bounded = rule("false_positive_rate", 0.01)
    assert passing_candidates(bounded, [good], 100)[0]
    assert not passing_candidates(bounded, [good, bad], 100)[0]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), bound=st.sampled_from([0.5, 0.8, 0.95]), expected=st.sampled_from([10.0, 1000.0, 1e5]))
def test_passing_candidates_of_precision_would_pass_alone(seed: int, bound: float, expected: float) -> None:
    random = np.random.default_rng(seed)
    rows = np.arange(1, 2000, 3, dtype=float)
    count = np.cumsum(random.random(2000) < np.linspace(1, bound - 0.1, 2000))[rows.astype(int)].clip(max=rows)
    evidence = ConstraintCounts(None, count.astype(float), rows, np.ones(len(rows)))
    precise = rule("precision", bound)
    passed = passing_candidates(precise, [evidence], expected)
    assert (p_values(precise, evidence)[passed] <= 0.05 + 1e-12).all()


@pytest.mark.prove
def test_passing_candidates_rarely_errs_at_the_edge_of_precision(proofs) -> None:
    """Hardest case: precision is slightly below the bound at every threshold. The smallest p-value alone errs often."""
    repetitions = proofs(300, 5000)
    random = np.random.default_rng(0)
    precise = rule("precision", 0.9)
    rows = np.unique(np.geomspace(20, 20_000, 300).astype(int)).astype(float)
    errors, naive = 0, 0
    for _ in range(repetitions):
        count = np.cumsum(random.random(20_001) < 0.8999)[rows.astype(int) - 1].astype(float)
        evidence = ConstraintCounts(None, count, rows, np.ones(len(rows)))
        errors += passing_candidates(precise, [evidence], 18_000.0).any()
        naive += (p_values(precise, evidence) <= 0.05).any()
    print(f"errors in {errors / repetitions:.1%} of {repetitions}; with the best of all thresholds in {naive / repetitions:.1%}")
    assert errors <= binom.ppf(0.999, repetitions, 0.05)
    assert naive > 2 * 0.05 * repetitions


@pytest.mark.prove
def test_weighted_upper_covers_a_sum_of_rates(proofs) -> None:
    repetitions = proofs(2000, 20_000)
    random = np.random.default_rng(0)
    rows, rates = np.array([4000, 14_000, 9000]), np.array([0.0015, 0.0003, 0.0008])
    counts = random.binomial(rows[:, None], rates[:, None], (3, repetitions)).astype(float)
    upper = weighted_upper(counts, rows.astype(float), 0.95)
    broken = int((upper < rates.sum()).sum())
    print(f"the bound is below the truth in {broken / repetitions:.2%} of {repetitions}")
    assert broken <= binom.ppf(0.999, repetitions, 0.05)
    assert np.median(upper) < 1.6 * rates.sum()
    assert np.isinf(weighted_upper(np.zeros((2, 1)), np.array([10.0, 0.0]), 0.95)).all()


def test_weighted_upper_of_one_rate_is_the_exact_poisson_bound() -> None:
    from scipy.stats import chi2

    for count in (0, 1, 7):
        upper = weighted_upper(np.array([[float(count)]]), np.array([500.0]), 0.95)[0]
        assert upper == pytest.approx(chi2.ppf(0.95, 2 * (count + 1)) / 2 / 500)


def test_isotonic_positive_share_never_increases() -> None:
    from sklearn.isotonic import IsotonicRegression

    random = np.random.default_rng(3)
    p = random.random(800).astype(np.float32)
    positive, known = random.random(800) < p**2, random.random(800) < 0.8
    found = choose_candidates(p, known, np.inf)
    share_K = isotonic_positive_share(found, positive & known, ~positive & known)
    wanted = IsotonicRegression().fit(p[known], positive[known])
    first = found.first_N[known]
    assert np.allclose(share_K[first], wanted.predict(p[known]), atol=0.08)
    assert (np.diff(share_K) <= 1e-12).all()
    # A label without known targets uses its probabilities.
    nothing = np.zeros(800, bool)
    assert (isotonic_positive_share(found, nothing, nothing) == found.thresholds_K).all()


def test_allocate_budget_maximizes_the_harm_caught() -> None:
    """Two labels with equal probabilities, one with three times the severity, and the optimum by brute force."""
    random = np.random.default_rng(5)
    n, free = 3000, np.ones(3000, bool)
    claims, harm = [], np.zeros((2, n))
    for i, severity in enumerate((1.0, 3.0)):
        p = random.beta(0.5, 4, n).astype(np.float32)
        positive = random.random(n) < p
        found = choose_candidates(p, np.ones(n, bool), np.inf)
        claims.append(BudgetRequest(found, np.ones(len(found.thresholds_K), bool), -1, severity, positive, ~positive))
        harm[i] = severity * positive
    budget = replace(rule("share_of_traffic", 0.1), label=None)
    spent = allocate_budget(claims, free, [(budget, 1.0, [free])], None)
    hit = [claim.candidates.first_N <= k for claim, k in zip(claims, spent.chosen, strict=True)]
    union = hit[0] | hit[1]
    assert spent.limiting_rule == budget
    assert binom.cdf(union.sum(), n, 0.1) <= 0.05 < binom.cdf(union.sum() + 60, n, 0.1)
    most = 0.0
    for k in range(0, len(claims[0].candidates.thresholds_K), 4):
        one = claims[0].candidates.first_N <= k
        for j in range(0, len(claims[1].candidates.thresholds_K), 4):
            other = claims[1].candidates.first_N <= j
            if (one | other).sum() <= union.sum():
                most = max(most, harm[0][one].sum() + harm[1][other].sum())
    assert harm[0][hit[0]].sum() + harm[1][hit[1]].sum() >= 0.95 * most


def test_closest_feasible_bound_is_feasible_and_nearly_optimal() -> None:
    for metric, truth in (("precision", 0.8765), ("false_positive_rate", 0.002344)):
        asked = rule(metric, 0.95 if metric == "precision" else 0.001)
        limit = truth
        at = closest_feasible_bound(asked, lambda r, limit=limit: r.bound <= limit if r.at_least else r.bound >= limit)
        assert at is not None
        assert asked.at_least == (at <= truth)
        assert at == pytest.approx(truth, abs=0.001 if metric == "precision" else 0.00001)
    assert closest_feasible_bound(rule("precision", 0.9), lambda _: False) is None


def test_required_items_factor() -> None:
    assert required_items_factor(lambda by: by >= 3.5) == pytest.approx(3.5, rel=1e-3)
    assert required_items_factor(lambda _: False) is None


def test_choose_candidates_of_no_items_is_empty() -> None:
    found = choose_candidates(np.empty(0, np.float32), np.empty(0, bool), np.inf)
    assert isinstance(found, ThresholdCandidates)
    assert len(found.thresholds_K) == 0


def weighted(count: tuple[np.ndarray, np.ndarray], rest: tuple[np.ndarray, np.ndarray], largest: tuple[float, float]):
    """Counts in two strata, each with its weight, as a constraint's evidence; ``[strata, K]`` each."""
    sums = [
        WeightSums(weights @ counts, weights**2 @ counts, np.full(counts.shape[1], most))
        for (weights, counts), most in zip((count, rest), largest, strict=True)
    ]
    rows = count[1].sum(axis=0) + rest[1].sum(axis=0)
    return ConstraintCounts(None, count[1].sum(axis=0).astype(float), rows.astype(float), np.ones(len(rows)), tuple(sums))


METRICS = ("precision", "false_positive_rate", "recall", "miss_rate", "expected_miss_rate", "share_of_traffic")


@given(
    rows=st.integers(1, 400),
    share=st.floats(0, 1),
    bound=st.floats(0.01, 0.99),
    weight=st.sampled_from([0.5, 1.0, 8.0]),
    metric=st.sampled_from(METRICS),
)
def test_p_values_and_bounds_with_equal_weights_are_those_without(
    rows: int, share: float, bound: float, weight: float, metric: str
) -> None:
    count, one = round(share * rows), np.array([weight])
    hits, rest = np.array([[count]]), np.array([[rows - count]])
    evidence, plain = weighted((one, hits), (one, rest), (weight, weight)), counted(count, rows)
    asked = rule(metric, bound)
    assert p_values(asked, evidence) == pytest.approx(p_values(asked, plain), abs=1e-9)
    for found, wanted in zip(confidence_bounds(asked, evidence, 0.95), confidence_bounds(asked, plain, 0.95), strict=True):
        assert found == pytest.approx(wanted, abs=1e-6)
    assert metric_estimates(asked, evidence) == pytest.approx(metric_estimates(asked, plain))
    assert evidence.effective_rows(bound) == pytest.approx(plain.effective_rows(bound))


# Share of the base in each stratum, share of its items that count, and inclusion probability.
DESIGNS = {
    "caught items all reviewed, missed ones a tenth": ((0.65, 1, 1.0), (0.35, 0, 0.1)),
    "few of the missed reviewed": ((0.7, 1, 1.0), (0.25, 1, 0.02), (0.05, 0, 0.02)),
    "three strata": ((0.5, 1, 1.0), (0.2, 1, 0.3), (0.15, 0, 0.3), (0.15, 0, 0.03)),
    "errors in the heavy stratum": ((0.8, 0.99, 1.0), (0.2, 0.79, 0.05)),
    "mixed": ((0.8, 0.95, 1.0), (0.2, 0.7, 0.1)),
    "the high ones are heavy": ((0.3, 1, 0.05), (0.6, 1, 1.0), (0.1, 0, 1.0)),
    "rare": ((0.01, 0, 1.0), (0.99, 1, 0.1)),
}


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("items", [300, 1000, 8000])
def test_p_values_of_weighted_counts_rarely_err_at_the_bound(design: str, items: int) -> None:
    """The true share equals the bound, in either direction; 20,000 stratified samples."""
    part, share, inclusion = np.array(DESIGNS[design]).T
    random, repetitions = np.random.default_rng(0), 20_000
    hits, rest = (
        random.poisson((items * part * each * inclusion)[:, None], (len(part), repetitions)) for each in (share, 1 - share)
    )
    largest = ((1 / inclusion)[share > 0].max(), (1 / inclusion)[share < 1].max())
    evidence = weighted((1 / inclusion, hits), (1 / inclusion, rest), largest)
    truth = float(part @ share)
    for metric in ("recall", "false_positive_rate"):
        errs = float((p_values(rule(metric, truth), evidence) <= 0.05).mean())
        assert errs <= 0.05 + 3 * (0.05 * 0.95 / repetitions) ** 0.5, (metric, errs)
    # A bound is the share at which the test just rejects.
    few = weighted((1 / inclusion, hits[:, :50]), (1 / inclusion, rest[:, :50]), largest)
    low, high = confidence_bounds(rule("recall", truth), few, 0.95)
    for place in range(0, 50, 10):
        for metric, bound in (("recall", low[place]), ("false_positive_rate", high[place])):
            if 1e-6 < bound < 1 - 1e-6:
                assert p_values(rule(metric, bound), few)[place] == pytest.approx(0.05, abs=1e-6)


def test_p_values_of_the_expected_miss_rate_hold_in_the_mean_with_weights() -> None:
    """The lowest threshold whose weighted bound suffices misses at most the stated share of new positives on average."""
    random, missed = np.random.default_rng(0), []
    limited = rule("expected_miss_rate", 0.2)
    for _ in range(4000):
        score = random.random(150)
        inclusion = np.where(score >= 0.5, 1.0, 0.2)
        known = random.random(150) < inclusion
        order = np.argsort(-score)
        found = count_at_candidates(
            np.argsort(order), 150, known, None, units_M=None, groups=[(None, None)], weights_M=1 / inclusion
        )[0]
        enough = np.flatnonzero(p_values(limited, found) < 1)
        missed.append(score[order[enough[0]]] if len(enough) else 0.0)
    assert np.mean(missed) <= 0.2
    assert np.mean(missed) > 0.12


@pytest.mark.parametrize("seed", range(5))
def test_count_at_candidates_with_weights_equals_a_loop(seed: int) -> None:
    random = np.random.default_rng(seed)
    p = (random.integers(0, 50, 300) / 50).astype(np.float32)
    positive, known, group = random.random(300) < p, random.random(300) < 0.7, random.random(300) < 0.5
    weight, units = random.choice([1.0, 2.5, 9.0], 300), random.integers(0, 80, 300).astype(np.int32)
    found = choose_candidates(p, known, np.inf)
    count, groups = len(found.thresholds_K), [("all", None), ("some", group)]
    given = {"units_M": units, "groups": groups, "weights_M": weight}
    precision = count_at_candidates(found.first_N, count, known, positive & known, **given)
    rate = count_at_candidates(found.first_N, count, known & ~positive, None, **given)
    for within, right, hit in zip((np.ones(300, bool), group), precision, rate, strict=True):
        for k, cut in enumerate(found.thresholds_K):
            reached = (p >= cut) & within
            cases = [
                (right, 0, reached & known & positive, reached),
                (right, 1, reached & known & ~positive, reached),
                (hit, 0, reached & known & ~positive, reached),
                (hit, 1, within & ~reached & known & ~positive, within & ~reached),
            ]
            for counts, kind, rows, possible in cases:
                sums = counts.weights[kind]
                assert sums.sum_K[k] == pytest.approx(weight[rows].sum())
                assert sums.squares_K[k] == pytest.approx((weight[rows] ** 2).sum())
                assert not possible.any() or sums.largest_K[k] == weight[possible].max()
        # Effective counts of precision at the lowest candidate: all known items of the group.
        mine = known & within
        size = (np.bincount(units[mine], weight[mine]) ** 2).sum() / (weight[mine] ** 2).sum()
        whole = (1 / precision[0].effective_K[-1] - 1) / (
            (np.bincount(units[known], weight[known]) ** 2).sum() / (weight[known] ** 2).sum() - 1
        )
        assert 1 / right.effective_K[-1] == pytest.approx(1 + whole * (size - 1))


@pytest.mark.prove
def test_weighted_upper_covers_a_sum_of_rates_of_weighted_events(proofs) -> None:
    repetitions = proofs(2000, 20_000)
    random = np.random.default_rng(0)
    # Each rate has events of weight 1 and, more rarely observed, of weight 10.
    rows, rates = np.array([80_000.0, 120_000.0]), np.array([[0.001, 0.0008], [0.0002, 0.0004]])
    weights = np.array([1.0, 10.0])
    counts = random.poisson((rows[:, None] * rates / weights)[:, :, None], (2, 2, repetitions))
    sums, squares = np.einsum("w,lwr->lr", weights, counts), np.einsum("w,lwr->lr", weights**2, counts)
    upper = weighted_upper(sums, rows, 0.95, (squares, np.full_like(sums, 10.0)))
    broken = int((upper < rates.sum()).sum())
    print(f"the bound is below the truth in {broken / repetitions:.2%} of {repetitions}")
    assert broken <= binom.ppf(0.999, repetitions, 0.05)
    assert np.median(upper) < 1.6 * rates.sum()
