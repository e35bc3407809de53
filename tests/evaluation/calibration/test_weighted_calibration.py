"""Calibration of rows that represent several items each: equal to repeated rows, and true to the population that was sampled."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from vigil.workflows.evaluate import calibrate_table
from vigil_evaluation.calibration.calibrators import Calibration, Calibrator, FittedCalibration
from vigil_evaluation.calibration.conformal import fit_conformal
from vigil_evaluation.calibration.conformal_coverage import conformal_coverage
from vigil_evaluation.calibration.drift import FALSE_ALARM_RATE, DriftReference, detect_drift, effective_counts
from vigil_evaluation.calibration.fit import FIT_FUNCTIONS, MAX_KNOTS, fit_calibration, fit_calibrators
from vigil_evaluation.metrics import calibration_error, f1_at
from vigil_evaluation.sampling_weights import SamplingWeights
from vigil_evaluation.specs import CalibrationSpec, ConformalSpec, EvaluationSpec


class Population(NamedTuple):
    """Targets, raw probabilities, and number of items that each row of a review represents; 1 for rows of no review."""

    targets: np.ndarray
    raw: np.ndarray
    weights: np.ndarray

    @property
    def by(self) -> SamplingWeights:
        return SamplingWeights(self.weights, self.weights)


def population(random: np.random.Generator, items: int, *, review: bool = False, shift: float = 0.0) -> Population:
    """Return items whose raw probabilities are too sure; of a review only those that it labels.

    It labels all items that an older model scores at .5 or more, and a tenth of the others. Among items of one raw probability,
    positives have higher scores by the older model, so that the labelled ones have more positives than the population.
    """
    odds = random.normal(-2 + shift, 2, items)
    targets = (random.random(items) < expit(0.6 * (odds - shift) - 0.5)).astype(float)
    stated = np.ones(items)
    if review:
        stated = np.where(odds + 3 * targets + random.normal(-1, 1, items) >= 0, 1.0, 0.1)
    rows = random.random(items) < stated
    return Population(targets[rows], expit(odds[rows]), 1 / stated[rows])


def parameters(calibrator: Calibrator) -> np.ndarray:
    return np.concatenate([np.atleast_1d(value) for value in calibrator.parameters.values()])


# Oracles


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.booleans())
def test_fit_functions_of_weighted_rows_equal_those_of_repeated_rows(seed: int, soft: bool) -> None:
    random = np.random.default_rng(seed)
    targets, raw, _ = population(random, 150)
    targets = 0.8 * targets + 0.1 if soft else targets
    weights = random.integers(1, 5, 150)
    for method, fit in FIT_FUNCTIONS.items():
        weighted = fit(targets, raw, weights.astype(float))
        repeated = fit(np.repeat(targets, weights), np.repeat(raw, weights))
        at = np.linspace(0.001, 0.999, 50)
        np.testing.assert_allclose(weighted.apply(at), repeated.apply(at), atol=1e-9 if method == "isotonic" else 2e-5)


def test_fit_platt_and_beta_of_weighted_rows_equal_logistic_regression() -> None:
    random = np.random.default_rng(4)
    targets, raw, weights = population(random, 3000, review=True)
    raw = raw.astype(np.float32).astype(np.float64)
    positives, negatives = weights @ targets, weights @ (1 - targets)
    smoothed = np.where(targets == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    both = np.concatenate([weights * smoothed, weights * (1 - smoothed)])
    for method, columns in (("platt", [logit(raw)]), ("beta", [np.log(raw), -np.log1p(-raw)])):
        features = np.stack(columns, axis=1)
        peer = LogisticRegression(C=1e12, tol=1e-10, max_iter=10_000)
        peer.fit(np.vstack([features] * 2), np.repeat([1, 0], len(raw)), sample_weight=both)
        found = parameters(FIT_FUNCTIONS[method](targets, raw, weights))
        assert found == pytest.approx([*peer.coef_[0], peer.intercept_[0]], abs=5e-4), method


def test_fit_isotonic_of_weighted_rows_has_the_blocks_of_scikit_learn() -> None:
    random = np.random.default_rng(5)
    raw = np.round(0.01 + 0.98 * random.random(1500), 2).astype(np.float32).astype(np.float64)
    targets = np.where(random.random(1500) < 0.2, 0.5, random.random(1500) < 0.1 + 0.6 * raw)
    weights = random.uniform(0.1, 10, 1500)
    peer = IsotonicRegression().fit_transform(raw, targets, sample_weight=weights)
    blocks = [np.isclose(peer, value, rtol=0, atol=1e-12) for value in np.unique(peer.round(12))]
    found = FIT_FUNCTIONS["isotonic"](targets, raw, weights).parameters
    assert 5 < len(blocks) < MAX_KNOTS - 2
    np.testing.assert_allclose(found["raw"][1:-1], [np.average(raw[b], weights=weights[b]) for b in blocks], atol=1e-9)
    np.testing.assert_allclose(found["calibrated"][1:-1], [peer[b][0] for b in blocks], atol=1e-9)


def test_fit_calibrators_does_not_depend_on_the_unit_of_weights() -> None:
    random = np.random.default_rng(6)
    targets, raw, _ = population(random, 2000)
    groups = random.choice(["x", "y"], 2000).tolist()
    for weights in (np.full(2000, 7.0), random.choice([1.0, 10.0], 2000)):
        found = [
            fit_calibrators(targets[:, None], raw[:, None], ["a"], CalibrationSpec(by="g"), groups, weights_N=of).labels["a"]
            for of in (weights, weights / 100, None if weights[0] == weights[1] == weights[2] else weights)
        ]
        for other in found[1:]:
            assert (other.pooled.method, other.groups.keys()) == (found[0].pooled.method, found[0].groups.keys())
            assert other.log_loss == pytest.approx(found[0].log_loss, abs=1e-4)
            np.testing.assert_allclose(parameters(other.pooled), parameters(found[0].pooled), rtol=1e-3)


def test_fit_calibrators_needs_enough_effective_rows_of_each_class() -> None:
    """Of twelve positives two weigh a hundred times as much as the others: they count as about two."""
    raw = np.linspace(0.1, 0.9, 212)
    targets, weights = np.repeat([0.0, 1.0], [200, 12]), np.ones(212)
    assert fit_calibrators(targets[:, None], raw[:, None], ["a"], CalibrationSpec(), weights_N=weights).labels["a"].log_loss
    weights[-2:] = 100
    found = fit_calibrators(targets[:, None], raw[:, None], ["a"], CalibrationSpec(), weights_N=weights).labels["a"]
    assert (found.pooled.method, found.log_loss, found.known, found.positive) == ("none", {}, 212, 12)


def test_fit_calibrators_refuses_wrong_weights() -> None:
    for weights in ([1.0] * 3, [1.0] * 4 + [-1.0], [np.nan] * 5):
        with pytest.raises(ValueError, match=r"must be 5 finite numbers of at least 0"):
            fit_calibrators(np.zeros((5, 1)), np.zeros((5, 1)), ["a"], CalibrationSpec(), weights_N=weights)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.1, 0.3]))
def test_fit_conformal_of_weighted_rows_equals_a_loop(seed: int, alpha: float) -> None:
    random = np.random.default_rng(seed)
    targets, raw = (random.random(120) < 0.5).astype(float), random.random(120).round(2)
    weights = random.choice([1.0, 2.0, 10.0], 120)
    spec = ConformalSpec(miss_rate=alpha, error_rate=alpha)
    found = fit_conformal(targets[:, None], raw[:, None], ["a"], spec, weights).labels["a"]

    def loop(scores: np.ndarray, of: np.ndarray) -> float | None:
        """Return the largest score that leaves at most ``alpha`` below it, with one more row of the largest weight there."""
        allowed = [s for s in scores if of[scores < s].sum() + weights.max() <= alpha * (of.sum() + weights.max()) + 1e-9]
        return max(allowed, default=None)

    one, other = targets == 1, targets == 0
    no = loop(-raw[other], weights[other])
    assert (found.review, found.yes, found.no) == (*[loop(raw[one], weights[one])] * 2, None if no is None else -no)
    assert found.fitted_on(positive=True) == pytest.approx(weights[one].sum() / weights.max())
    equal = fit_conformal(targets[:, None], raw[:, None], ["a"], spec, np.full(120, 0.3)).labels["a"]
    plain = fit_conformal(targets[:, None], raw[:, None], ["a"], spec).labels["a"]
    assert (equal.review, equal.yes, equal.no) == (plain.review, plain.yes, plain.no)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6))
def test_calibrate_table_chooses_the_thresholds_of_repeated_rows(seed: int) -> None:
    random = np.random.default_rng(seed)
    targets, raw, _ = population(random, 150)
    weights = random.integers(1, 6, 150)
    spec = EvaluationSpec(calibration=CalibrationSpec(methods=("none",)))

    def table(rows: np.ndarray, **columns: np.ndarray) -> pa.Table:
        ids = [f"item-{i}" for i in range(len(rows))]
        scores = pa.array(raw[rows], pa.float32())
        return pa.table({"id": ids, "target.a": pa.array(targets[rows], pa.float32()), "probability.a": scores} | columns)

    everything = np.arange(150)
    repeated = calibrate_table(table(np.repeat(everything, weights)), ["a"], spec)[1]["a"]
    for columns in ({"weight": weights}, {"inclusion_probability": 1 / weights}):
        found = calibrate_table(table(everything, **columns), ["a"], spec)[1]["a"]
        best = max(f1_at(targets, raw.astype(np.float32), float(cut), weights) or 0 for cut in raw.astype(np.float32))
        assert found == repeated
        assert f1_at(targets, raw.astype(np.float32), found, weights) == pytest.approx(best)


# Simulations


@pytest.mark.prove
def test_fit_calibrators_recovers_the_calibration_of_the_reviewed_population(proofs: Callable[[int, int], int]) -> None:
    tries, found = proofs(8, 300), {"weighted": [], "unweighted": [], "random sample": []}
    fresh = population(np.random.default_rng(10**6), 50_000)
    for seed in range(tries):
        random = np.random.default_rng(seed)
        reviewed = population(random, 8000, review=True)
        sampled = population(random, len(reviewed.raw))
        for name, of, by in (
            ("weighted", reviewed, reviewed.weights),
            ("unweighted", reviewed, None),
            ("random sample", sampled, None),
        ):
            made = fit_calibrators(of.targets[:, None], of.raw[:, None], ["a"], CalibrationSpec(), seed=seed, weights_N=by)
            found[name].append(calibration_error(fresh.targets, made.apply(fresh.raw[:, None])[:, 0]))
    uncalibrated = calibration_error(fresh.targets, fresh.raw)
    means = {name: round(float(np.mean(values)), 4) for name, values in found.items()}
    print(f"calibration error: {means}, uncalibrated {uncalibrated:.4f}; {len(reviewed.raw)} of 8000 labelled")
    assert means["weighted"] < 0.02 < 0.05 < means["unweighted"]
    assert means["weighted"] < 2 * means["random sample"]


@pytest.mark.prove
def test_fit_calibration_keeps_the_conformal_guarantees_under_review(proofs: Callable[[int, int], int]) -> None:
    tries, spec = proofs(40, 2000), EvaluationSpec(calibration=CalibrationSpec(methods=("platt",)))
    rates: dict[str, list[tuple[float, float, float]]] = {"weighted": [], "unweighted": []}
    for seed in range(tries):
        random = np.random.default_rng(seed)
        reviewed, fresh = population(random, 4000, review=True), population(random, 4000)
        for name, by in (("weighted", reviewed.by), ("unweighted", None)):
            made = fit_calibration(reviewed.targets[:, None], reviewed.raw[:, None], ["a"], spec, weights=by)
            assert made.conformal is not None
            read = made.calibration.apply(fresh.raw[:, None])
            sets, positive = made.conformal.sets(read)[:, 0], fresh.targets == 1
            missed = (~made.conformal.reviewed(read))[positive].mean()
            rates[name].append((missed, np.isin(sets[positive], (0, 3)).mean(), np.isin(sets[~positive], (1, 3)).mean()))
    means = {name: np.mean(of, axis=0) for name, of in rates.items()}
    error = np.std(rates["weighted"], axis=0) / np.sqrt(tries)
    print("10 % stated; missed, sets without yes, sets without no:", {name: of.round(4).tolist() for name, of in means.items()})
    assert (means["weighted"] <= 0.1 + 3 * error).all()
    assert (means["weighted"] >= 0.07 - 3 * error).all(), "and not by reviewing everything"
    assert means["unweighted"].max() > 0.13, "a guarantee is broken without weights"


@pytest.mark.prove
def test_detect_drift_of_weighted_rows_keeps_the_false_alarm_rate(proofs: Callable[[int, int], int]) -> None:
    """Reference and traffic are reviews of the same population, by different designs or none."""
    tries, alarms = proofs(30, 2000), {}
    for name, before, now in (("reference", True, False), ("traffic", False, True), ("both", True, True)):
        count = 0
        for seed in range(tries):
            random = np.random.default_rng([seed, before, now])
            one, other = (population(random, 4000, review=review) for review in (before, now))
            presence, others = (
                np.where(of.raw < random.random(len(of.raw)) ** 2, "text", "image").tolist() for of in (one, other)
            )
            conformal = fit_conformal(one.targets[:, None], one.raw[:, None], ["a"], ConformalSpec(), one.weights)
            reference = DriftReference.of(one.raw[:, None], conformal, presence, one.weights)
            count += bool(detect_drift(reference, other.raw[:, None], others, other.weights).warnings)
            plain = DriftReference.of(one.raw[:, None], conformal, presence)
            assert before == now or detect_drift(plain, other.raw[:, None], others).warnings, "a review looks like drift"
        alarms[name] = count / tries
    print(f"false alarms, {FALSE_ALARM_RATE} stated: {alarms}")
    assert max(alarms.values()) <= FALSE_ALARM_RATE + 3 * np.sqrt(FALSE_ALARM_RATE / tries)


def test_detect_drift_of_weighted_rows_finds_drift() -> None:
    random = np.random.default_rng(0)
    one, other = population(random, 8000, review=True), population(random, 8000, review=True, shift=1)
    conformal = fit_conformal(one.targets[:, None], one.raw[:, None], ["a"], ConformalSpec(), one.weights)
    reference = DriftReference.of(one.raw[:, None], conformal, None, one.weights)
    (warning,) = detect_drift(reference, other.raw[:, None], None, other.weights).warnings
    assert warning.startswith("probabilities of a have drifted from the calibration split")


def test_effective_counts_of_equal_weights_are_counts() -> None:
    places = np.random.default_rng(0).integers(0, 5, 300)
    for weights in (None, np.full(300, 0.3)):
        np.testing.assert_array_equal(effective_counts(places, 6, weights), np.bincount(places, minlength=6))
    heavy = effective_counts(places, 6, np.where(places == 0, 10.0, 1.0))
    shares = np.bincount(places, np.where(places == 0, 10.0, 1.0), 6)
    np.testing.assert_allclose(heavy / heavy.sum(), shares / shares.sum(), atol=0.02)
    assert heavy.sum() < 300


@pytest.mark.prove
def test_conformal_coverage_of_weighted_rows_warns_of_broken_guarantees_alone(proofs: Callable[[int, int], int]) -> None:
    tries, labels, counts, held, shares = proofs(60, 2000), ["a"], np.zeros(2), 0, []
    calibration = population(np.random.default_rng(10**6), 1_000_000)
    conformal = fit_conformal(calibration.targets[:, None], calibration.raw[:, None], labels, ConformalSpec())
    made, cut = FittedCalibration(Calibration.identity(labels), conformal, None), conformal.labels["a"].review
    for seed in range(tries):
        random = np.random.default_rng(seed)
        rows = population(random, 4000, review=True)
        # A fifth of the negatives below the threshold become positive.
        turned = np.where((rows.raw < cut) & (random.random(len(rows.raw)) < 0.2), 1.0, rows.targets)
        for place, targets in enumerate((rows.targets, turned)):
            found = conformal_coverage(made, targets[:, None], rows.raw[:, None], labels, confidence=0.95, weights=rows.by)
            assert found is not None
            counts[place] += bool(found.warnings)
            if place == 0:
                seen = found.labels["a"].missed
                assert seen is not None
                assert seen.interval is not None
                shares.append(seen.share)
                held += seen.interval.low <= 0.1 <= seen.interval.high
    false, right = counts / tries
    print(f"missed {np.mean(shares):.4f} where 0.1 is true, intervals hold {held / tries:.3f}")
    print(f"warned {false:.4f} where the guarantee holds, {right:.4f} where it does not")
    assert np.mean(shares) == pytest.approx(0.1, abs=4 * np.std(shares) / np.sqrt(tries) + 0.001)
    assert held / tries >= 0.95 - 3.5 * np.sqrt(0.05 * 0.95 / tries)
    assert false <= FALSE_ALARM_RATE + 3 * np.sqrt(FALSE_ALARM_RATE / tries)
    assert right >= 0.9
