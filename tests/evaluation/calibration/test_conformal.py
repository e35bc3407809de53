"""Conformal thresholds: the guarantees hold in simulation, and planted drift that breaks them is reported."""

import csv
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import beta
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import BernoulliNB

from vigil_data.json_fields import structure
from vigil_evaluation.calibration.calibrators import Calibration, Calibrator, FittedCalibration
from vigil_evaluation.calibration.conformal import (
    BOTH,
    EMPTY,
    NO,
    YES,
    ConformalThresholds,
    LabelConformalThresholds,
    fit_conformal,
    risk_control,
)
from vigil_evaluation.calibration.conformal_coverage import conformal_coverage
from vigil_evaluation.calibration.drift import DriftReference, detect_drift
from vigil_evaluation.calibration.fit import fit_calibration, log_losses
from vigil_evaluation.metrics import calibration_error
from vigil_evaluation.specs import CalibrationSpec, ConformalSpec, EvaluationSpec

Arrays = tuple[np.ndarray, np.ndarray]


def traffic(random: np.random.Generator, items: int, *, hard: float = 0.1, offset: float = 0.0, labels: int = 1) -> Arrays:
    """Return targets and probabilities ``[N, L]``; a fraction of the positives is hard and scores as negatives do.

    Args:
        random: where chance comes from.
        items: N.
        hard: share of the hard kind; another share is a shift of the positives.
        offset: added to all log odds after the targets are drawn.
        labels: L.
    """
    positive = random.random((items, labels)) < 0.15
    subtle = random.random((items, labels)) < hard
    odds = np.where(positive, np.where(subtle, -2.0, 2.5), -3.0) + 0.7 * random.normal(size=(items, 1))
    return positive.astype(float), expit(odds + random.normal(size=odds.shape) + offset)


def missed(conformal: ConformalThresholds, targets: np.ndarray, probabilities: np.ndarray) -> float:
    return float((~conformal.reviewed(probabilities))[targets >= 0.5].mean())


def left_out(conformal: ConformalThresholds, targets: np.ndarray, probabilities: np.ndarray) -> tuple[float, float]:
    sets = conformal.sets(probabilities)
    return float(np.isin(sets[targets >= 0.5], (NO, EMPTY)).mean()), float(np.isin(sets[targets < 0.5], (YES, EMPTY)).mean())


# risk control


@settings(deadline=None)
@given(st.integers(1, 60), st.sampled_from([0.02, 0.1, 0.3, 0.5]), st.integers(0, 999))
def test_fit_conformal_equals_risk_control(positives: int, alpha: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = np.round(random.random(positives), random.integers(1, 4))
    candidates = np.sort(np.unique(scores))[::-1]
    place = risk_control(scores[:, None] < candidates[None], alpha)
    found = fit_conformal(np.ones((positives, 1)), scores[:, None], ["a"], ConformalSpec(miss_rate=alpha)).labels["a"]
    assert found.review == (None if place is None else candidates[place])
    assert (found.review is None) == (positives < 1 / alpha - 1 - 1e-9), "fewer cannot guarantee anything"


def test_risk_control_equals_hand_calculation() -> None:
    losses = np.array([[1.0, 0.5, 0.0, 0.0], [1.0, 1.0, 0.4, 0.0], [0.2, 0.2, 0.2, 0.2]])
    assert [risk_control(losses, alpha) for alpha in (0.9, 0.68, 0.5, 0.4, 0.3, 0.2)] == [0, 1, 2, 2, 3, None]
    assert risk_control(losses, 0.3, largest=2.0) is None
    assert risk_control(np.empty((0, 3)), 0.5) is None
    for wrong in (losses[:, ::-1], losses + 1, losses * np.nan, losses[0]):
        with pytest.raises(ValueError, match="loss"):
            risk_control(wrong, 0.5)


@pytest.mark.prove
def test_risk_control_bounds_the_expected_loss_of_the_next_item(proofs: Callable[[int, int], int]) -> None:
    tries = proofs(2000, 40_000)
    random = np.random.default_rng(0)
    for items in (12, 60):
        total = []
        for _ in range(tries):
            # A loss between 0 and 1: the fraction of an item's parts that the choice does not reach.
            depth = random.beta(1, 3, (items + 1, 1)) * random.random((items + 1, 5))
            losses = (depth[:, :, None] > np.linspace(0, 1, 101)).mean(axis=1)
            place = risk_control(losses[:-1], 0.2)
            total.append(0.0 if place is None else losses[-1, place])
        mean, error = float(np.mean(total)), float(np.std(total) / np.sqrt(tries))
        print(f"risk control on {items} items: mean loss {mean:.4f} ± {error:.4f}, stated 0.2")
        assert mean <= 0.2 + 3 * error
        assert mean >= 0.2 - 2 / (items + 1) - 0.01 - 3 * error, "and not by reviewing everything"


# guarantees


@pytest.mark.prove
@pytest.mark.parametrize(("items", "alpha"), [(150, 0.1), (600, 0.1), (600, 0.03)])
def test_fit_conformal_keeps_its_guarantees(items: int, alpha: float, proofs: Callable[[int, int], int]) -> None:
    tries, spec = proofs(300, 10_000), ConformalSpec(miss_rate=alpha, error_rate=alpha)
    rates = []
    for seed in range(tries):
        random = np.random.default_rng(seed)
        found = fit_conformal(*traffic(random, items), ["a"], spec)
        fresh = traffic(random, 1000)
        rates.append((missed(found, *fresh), *left_out(found, *fresh)))
    means, errors = np.mean(rates, axis=0), np.std(rates, axis=0) / np.sqrt(tries)
    print(f"{items} items, {alpha}: missed, left out of yes, of no: {means.round(4)} ± {errors.round(4)}")
    assert (means <= alpha + 3 * errors).all()
    assert means[2] >= alpha - 2 / (0.8 * items) - 3 * errors[2], "and not by abstaining always"
    assert means[0] >= alpha - 2 / (0.1 * items) - 3 * errors[0]


@pytest.mark.prove
@pytest.mark.parametrize("by", [None, "language"])
def test_fit_calibration_keeps_the_guarantees_on_the_same_rows(by: str | None, proofs: Callable[[int, int], int]) -> None:
    tries, spec = proofs(12, 600), EvaluationSpec(calibration=CalibrationSpec(by=by))

    def spoken(random: np.random.Generator, items: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Return items whose calibration differs by language, which is not an input of the model."""
        language = random.integers(0, 3, items)
        odds = random.normal(-2, 2, items)
        targets = random.random(items) < expit(0.7 * odds + 0.5 + np.array([0, 1.5, -1.5])[language])
        return targets.astype(float)[:, None], expit(odds)[:, None], np.array(["en", "de", "fr"])[language].tolist()

    rates, own = [], 0
    for seed in range(tries):
        random = np.random.default_rng(seed)
        targets, raw, language = spoken(random, 400)
        made = fit_calibration(targets, raw, ["a"], spec, language)
        assert made.conformal is not None
        own += len(made.calibration.labels["a"].groups)
        targets, raw, language = spoken(random, 1000)
        fresh = targets, made.calibration.apply(raw, language).astype(np.float32)
        rates.append((missed(made.conformal, *fresh), *left_out(made.conformal, *fresh)))
    means, errors = np.mean(rates, axis=0), np.std(rates, axis=0) / np.sqrt(tries)
    print(f"by {by}, {own / tries:.2f} groups with their own: {means.round(4)} ± {errors.round(4)}")
    assert (own > 0) == (by is not None)
    assert (means <= 0.1 + 3 * errors).all()


def test_conformal_thresholds_mapped_decide_identically() -> None:
    random = np.random.default_rng(5)
    targets, raw = traffic(random, 2000, labels=3)
    raw = raw.astype(np.float32).astype(np.float64)
    before = fit_conformal(targets, raw, ["a", "b", "c"], ConformalSpec())
    maps = {
        "a": Calibrator("beta", {"a": 0.3, "b": 1.7, "c": -1.0}).apply,
        "b": Calibrator("isotonic", {"raw": [0.0, 0.3, 1.0], "calibrated": [0.001, 0.1, 0.9]}).apply,
    }
    after = before.mapped(maps)
    calibrated = np.stack([maps["a"](raw[:, 0]), maps["b"](raw[:, 1]), raw[:, 2]], axis=1)
    for said in (calibrated, calibrated.astype(np.float32)):
        np.testing.assert_array_equal(after.reviewed(said), before.reviewed(raw))
        np.testing.assert_array_equal(after.sets(said), before.sets(raw))
    for label in after.labels.values():
        for threshold in (label.review, label.yes, label.no):
            assert threshold == float(np.float32(threshold)), "compared alike in float32 and in float64"


def test_conformal_thresholds_sets_and_review() -> None:
    labels = {
        "a": LabelConformalThresholds(9, 9, 0.3, 0.3, 0.6),
        "b": LabelConformalThresholds(9, 9, 0.5, 0.6, 0.3),
        "c": LabelConformalThresholds(3, 1, None, None, None),
    }
    conformal = ConformalThresholds(0.1, 0.1, labels)
    probabilities = np.array([[0.2] * 3, [0.3] * 3, [0.6] * 3, [0.7] * 3, [0.45] * 3, [np.nan] * 3])
    assert conformal.sets(probabilities).tolist() == [
        [NO, NO, BOTH],
        [BOTH, NO, BOTH],
        [BOTH, YES, BOTH],
        [YES, YES, BOTH],
        [BOTH, EMPTY, BOTH],
        [BOTH, BOTH, BOTH],
    ]
    assert conformal.sets(probabilities).dtype == np.int8
    np.testing.assert_array_equal(conformal.reviewed(probabilities)[:, 0], [False, True, True, True, True, True])
    np.testing.assert_array_equal(conformal.reviewed(probabilities)[:, 1], [False, False, True, True, False, True])
    assert conformal.reviewed(probabilities)[:, 2].all(), "without a threshold all are reviewed"
    with pytest.raises(ValueError, match=r"\[N, 3\]"):
        conformal.sets(probabilities[:, :2])


@settings(deadline=None)
@given(st.integers(0, 500))
def test_fit_conformal_ignores_unknown_targets_and_cuts_soft_ones_at_a_half(seed: int) -> None:
    random = np.random.default_rng(seed)
    targets, probabilities = traffic(random, 120)
    soft = np.where(targets == 1, 0.5 + 0.5 * random.random(targets.shape), 0.49 * random.random(targets.shape))
    unknown = random.random(targets.shape) < 0.3
    masked = fit_conformal(np.where(unknown, np.nan, soft), np.where(unknown, np.nan, probabilities), ["a"], ConformalSpec())
    assert masked == fit_conformal(targets[~unknown][:, None], probabilities[~unknown][:, None], ["a"], ConformalSpec())
    assert structure(ConformalThresholds, json.loads(json.dumps(asdict(masked))), "conformal") == masked


def test_fit_conformal_refuses_wrong_shapes_and_nan() -> None:
    with pytest.raises(ValueError, match=r"\[N, 1\]"):
        fit_conformal(np.zeros((3, 2)), np.zeros((3, 2)), ["a"], ConformalSpec())
    with pytest.raises(ValueError, match="is NaN"):
        fit_conformal(np.zeros((3, 1)), np.full((3, 1), np.nan), ["a"], ConformalSpec())


# coverage


def fitted(
    targets: np.ndarray, probabilities: np.ndarray, labels: list[str], presence: list[str] | None = None
) -> FittedCalibration:
    """Fit conformal thresholds and the reference without calibrators."""
    conformal = fit_conformal(targets, probabilities, labels, ConformalSpec())
    return FittedCalibration(Calibration.identity(labels), conformal, DriftReference.of(probabilities, conformal, presence))


def test_conformal_coverage_equals_hand_calculation() -> None:
    conformal = ConformalThresholds(
        0.1, 0.2, {"a": LabelConformalThresholds(40, 20, 0.3, 0.4, 0.6), "b": LabelConformalThresholds(3, 1, None, None, None)}
    )
    targets = np.array([[1, 1], [1, np.nan], [1, 0], [0, 0], [0, np.nan], [np.nan, np.nan]])
    probabilities = np.array([[0.2, 0.5], [0.35, 0.5], [0.7, 0.5], [0.65, 0.5], [0.5, 0.5], [0.9, 0.5]])
    found = conformal_coverage(
        FittedCalibration(Calibration.identity(["a", "b"]), conformal, None), targets, probabilities, ["a", "b"], confidence=0.95
    )
    assert found is not None
    a, b = found.labels["a"], found.labels["b"]
    assert (a.known, a.positive, a.review_threshold, a.reviewed) == (5, 3, 0.3, 5 / 6)
    assert a.missed is not None
    assert (a.missed.stated, a.missed.items, a.missed.errors, a.missed.share, a.missed.fitted_on) == (0.1, 3, 1, 1 / 3, 20)
    assert a.missed.interval == pytest.approx((beta.ppf(0.025, 1, 3), beta.ppf(0.975, 2, 2)))
    assert a.left_out_yes is not None
    assert (a.left_out_yes.stated, a.left_out_yes.items, a.left_out_yes.errors) == (0.2, 3, 2)
    assert a.left_out_no is not None
    assert (a.left_out_no.items, a.left_out_no.errors, a.left_out_no.fitted_on) == (2, 1, 20)
    assert a.abstained == 1 / 6
    assert (b.known, b.positive) == (3, 1)
    assert (b.review_threshold, b.reviewed, b.missed, b.left_out_yes, b.left_out_no, b.abstained) == (None,) * 6
    assert found.reviewed_any == 5 / 6, "of labels that have a threshold"
    assert (found.drift, found.warnings) == (None, [])
    json.dumps(asdict(found), allow_nan=False)


def test_conformal_coverage_without_thresholds_or_rows() -> None:
    empty = np.empty((0, 1))
    assert (
        conformal_coverage(FittedCalibration(Calibration.identity(["a"]), None, None), empty, empty, ["a"], confidence=0.95)
        is None
    )
    made = fitted(*traffic(np.random.default_rng(0), 500), ["a"])
    assert conformal_coverage(made, empty, empty, ["b"], confidence=0.95) is None
    found = conformal_coverage(made, empty, empty, ["a"], confidence=0.95)
    assert found is not None
    assert found.labels["a"].missed is not None
    assert (found.labels["a"].missed.share, found.labels["a"].reviewed, found.reviewed_any, found.warnings) == (
        None,
        None,
        None,
        [],
    )
    unlabelled = conformal_coverage(made, np.full((50, 1), np.nan), np.full((50, 1), 0.5), ["a"], confidence=0.95)
    assert unlabelled is not None
    assert unlabelled.labels["a"].missed is not None
    assert unlabelled.labels["a"].missed.share is None


@pytest.mark.prove
def test_conformal_coverage_warns_of_planted_drift(proofs: Callable[[int, int], int]) -> None:
    tries, labels = proofs(40, 1000), ["a", "b", "c"]
    counts = {name: [0, 0] for name in ("as it was", "more of the hard kind", "same scores, other targets")}
    misses: dict[str, list[float]] = {name: [] for name in counts}
    for seed in range(tries):
        random = np.random.default_rng(seed)
        made = fitted(*traffic(random, 3000, labels=3), labels)
        conformal = made.conformal
        assert conformal is not None
        same, hard = traffic(random, 3000, labels=3), traffic(random, 3000, hard=0.5, labels=3)
        # The scores are unchanged, but a fifth of the negatives below the threshold become positive.
        targets, probabilities = traffic(random, 3000, labels=3)
        turned = np.where(~conformal.reviewed(probabilities) & (random.random(targets.shape) < 0.05), 1.0, targets)
        for name, rows in zip(counts, (same, hard, (turned, probabilities)), strict=True):
            found = conformal_coverage(made, *rows, labels, confidence=0.95)
            assert found is not None
            assert found.drift is not None
            counts[name][0] += bool(found.drift.warnings)
            counts[name][1] += any("does not hold" in warning for warning in found.warnings)
            misses[name].append(missed(conformal, *rows))
    means = {name: round(float(np.mean(values)), 4) for name, values in misses.items()}
    shares = {name: [count / tries for count in both] for name, both in counts.items()}
    print(f"missed where 0.1 is stated: {means}; warned without labels, and with them: {shares}")
    assert means["as it was"] <= 0.1 + 3 * np.std(misses["as it was"]) / np.sqrt(tries)
    assert means["more of the hard kind"] > 0.3, "the guarantee is broken"
    assert means["same scores, other targets"] > 0.2, "and here"
    assert shares["more of the hard kind"] == [1, 1]
    allowed = 0.01 + 3 * np.sqrt(0.01 / tries)
    assert max(shares["as it was"]) <= allowed
    assert shares["same scores, other targets"][0] <= allowed, "unlabelled items cannot show it"
    assert shares["same scores, other targets"][1] == 1, "labelled ones do"


def test_conformal_coverage_warnings_name_the_broken_guarantee() -> None:
    random = np.random.default_rng(2)
    made = fitted(*traffic(random, 3000), ["hate"])
    found = conformal_coverage(made, *traffic(random, 3000, hard=0.5), ["hate"], confidence=0.95)
    assert found is not None
    first, second = found.warnings[:2]
    assert first.startswith("probabilities of hate have drifted from the calibration split (")
    assert first.endswith("the stated miss rate of 10 % is not guaranteed on this traffic")
    assert "hate positives were missed by review, more than the stated 10 % and more than chance explains" in second


def test_conformal_coverage_warnings_say_in_plain_words_what_a_wrong_set_means() -> None:
    """Negatives score as the positives of the calibration split did."""
    made = fitted(np.repeat([0.0, 1.0], 500)[:, None], np.linspace(0, 1, 1000)[:, None], ["hate"])
    found = conformal_coverage(made, np.zeros((500, 1)), np.linspace(0.6, 1, 500)[:, None], ["hate"], confidence=0.95)
    assert found is not None
    assert any(
        " hate negatives are taken for certain positives (their prediction set excludes no), more" in w for w in found.warnings
    )


def test_conformal_coverage_attributes_errors_to_few_calibration_items() -> None:
    """A threshold fitted on nine positives may have a miss rate of 25 % without drift."""
    targets = np.concatenate([np.ones(9), np.zeros(200)])[:, None]
    probabilities = np.concatenate([np.linspace(0.5, 0.9, 9), np.linspace(0, 0.4, 200)])[:, None]
    made = fitted(targets, probabilities, ["a"])
    rows = np.concatenate([np.full(250, 0.45), np.full(750, 0.8)])[:, None]
    found = conformal_coverage(
        FittedCalibration(made.calibration, made.conformal, None), np.ones((1000, 1)), rows, ["a"], confidence=0.95
    )
    assert found is not None
    (warning,) = found.warnings
    assert warning.startswith(
        "25 % (22.3 % to 27.8 %) of the 1000 a positives were missed by review, more than the stated 10 %: "
    )
    assert warning.endswith("since the threshold was fitted on only 9 items; calibrate on more items")


def test_conformal_coverage_on_real_text(shared_data: Path) -> None:
    """Naive Bayes is overconfident; calibrated on dev, the guarantee holds on the test split, and not on other sources."""
    folder, names = shared_data / "text", ("text", "split", "label_sexist", "label_category")
    with (folder / "edos" / "edos_labelled_aggregated.csv").open(encoding="utf-8") as file:
        text, split, sexist, category = np.array([[row[name] for name in names] for row in csv.DictReader(file)], object).T
    kinds = sorted(set(category) - {"none"})
    targets = np.stack([sexist == "sexist", *(category == kind for kind in kinds)], axis=1).astype(float)
    labels = ["any", "first", "second", "third", "fourth"]
    words = CountVectorizer(min_df=2, binary=True).fit(text[split == "train"])
    learnt = words.transform(text[split == "train"])
    models = [BernoulliNB().fit(learnt, column) for column in targets[split == "train"].T]

    def scores(of: np.ndarray) -> np.ndarray:
        counted = words.transform(of)
        return np.stack([model.predict_proba(counted)[:, 1] for model in models], axis=1)

    made = fit_calibration(targets[split == "dev"], scores(text[split == "dev"]), labels, EvaluationSpec())
    raw, known = scores(text[split == "test"]), targets[split == "test"]
    calibrated = made.calibration.apply(raw)
    for i, label in enumerate(labels):
        before, after = (float(log_losses(known[:, i], said[:, i]).mean()) for said in (raw, calibrated))
        assert after < 0.9 * before, label
        error = calibration_error(known[:, i], calibrated[:, i])
        assert error is not None
        assert error < 0.03, label
    found = conformal_coverage(made, known, calibrated, labels, confidence=0.95)
    assert found is not None
    assert found.warnings == []
    shares = [
        label.missed.share for label in found.labels.values() if label.missed is not None and label.missed.share is not None
    ]
    assert len(shares) == 5
    assert np.mean(shares) < 0.13
    with (folder / "stormfront" / "stormfront.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    column = max(rows[0], key=lambda name: len(rows[0][name]))
    elsewhere = made.calibration.apply(scores(np.array([row[column] for row in rows], object)))
    assert made.reference is not None
    assert len(detect_drift(made.reference, elsewhere).warnings) == 5, "another forum than that of the split"
