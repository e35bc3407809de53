"""Drift: false alarms are as rare as stated, and drift that breaks the guarantee is detected."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import chi2_contingency

from vigil_evaluation.calibration.conformal import fit_conformal
from vigil_evaluation.calibration.drift import (
    FALSE_ALARM_RATE,
    MIN_DISTANCE,
    MIN_TAIL_RATIO,
    DriftReference,
    detect_drift,
    homogeneity,
)
from vigil_evaluation.specs import ConformalSpec

LABELS = ("a", "b", "c", "d", "e")
PATTERNS = ("text", "text+image", "image", "audio")
Items = tuple[np.ndarray, np.ndarray, list[str]]


def traffic(
    random: np.random.Generator, items: int, *, hard: float = 0.1, prevalence: float = 0.15, images: float = 0.25, step: float = 0
) -> Items:
    """Return targets and probabilities of five correlated labels, and presence.

    Args:
        random: where chance comes from.
        items: N.
        hard: share of the positives that score as negatives do.
        prevalence: share of positives.
        images: share of items with text and image.
        step: if not 0, log odds are multiples of it, so that probabilities tie.
    """
    positive = random.random((items, 5)) < prevalence
    subtle = random.random((items, 5)) < hard
    odds = (
        np.where(positive, np.where(subtle, -2.0, 2.5), -3.0)
        + 0.7 * random.normal(size=(items, 1))
        + random.normal(size=(items, 5))
    )
    if step:
        odds = np.round(odds / step) * step
    presence = random.choice(PATTERNS, items, p=[0.95 - images, images, 0.049, 0.001]).tolist()
    return positive.astype(float), expit(odds), presence


def sketched(items: Items) -> DriftReference:
    targets, probabilities, presence = items
    return DriftReference.of(probabilities, fit_conformal(targets, probabilities, LABELS, ConformalSpec()), presence)


@pytest.mark.prove
def test_detect_drift_keeps_the_stated_false_alarm_rate(proofs: Callable[[int, int], int]) -> None:
    """Calibration splits of 300 and 5,000 items, traffic of 50 to 50,000; scores without ties and with many."""
    tries = proofs(40, 2000)
    alarms, significant, tested = {}, 0, 0
    for before, now, step in ((300, 50, 0), (300, 5000, 0), (5000, 300, 0.0), (5000, 5000, 0.5), (1000, 50_000, 0)):
        rounds = tries if now < 50_000 else tries // 4
        count = 0
        for seed in range(rounds):
            random = np.random.default_rng([seed, before, now])
            reference = sketched(traffic(random, before, step=step))
            _, probabilities, presence = traffic(random, now, step=step)
            found = detect_drift(reference, probabilities, presence)
            count += bool(found.warnings)
            significant += sum(difference.p_value <= 0.05 for difference in found.labels.values())
            tested += len(found.labels)
        alarms[before, now, step] = count / rounds
        assert count / rounds <= FALSE_ALARM_RATE + 3 * np.sqrt(FALSE_ALARM_RATE / rounds), (before, now, step)
    print(f"false alarms, {FALSE_ALARM_RATE} stated: {alarms}; of single p-values {significant / tested:.4f} are at most 0.05")
    assert significant / tested <= 0.065


@pytest.mark.prove
def test_detect_drift_finds_drift_that_breaks_the_guarantee(proofs: Callable[[int, int], int]) -> None:
    tries, power, missed = proofs(10, 300), {}, {}
    for prevalence, before, now in (
        (0.15, 2000, 500),
        (0.15, 2000, 2000),
        (0.03, 2000, 2000),
        (0.03, 2000, 10_000),
        (0.03, 10_000, 5000),
    ):
        seen, misses = 0, []
        for seed in range(tries):
            random = np.random.default_rng([seed, before, now])
            items = traffic(random, before, prevalence=prevalence)
            conformal = fit_conformal(items[0], items[1], LABELS, ConformalSpec())
            targets, probabilities, presence = traffic(random, now, hard=0.6, prevalence=prevalence)
            seen += bool(detect_drift(sketched(items), probabilities, presence).warnings)
            misses.append((~conformal.reviewed(probabilities))[targets >= 0.5].mean())
        power[prevalence, before, now] = seen / tries
        missed[prevalence, before, now] = round(float(np.mean(misses)), 3)
    print(f"warned: {power}; missed where 0.1 is stated: {missed}")
    assert min(missed.values()) > 0.15
    assert power[0.15, 2000, 2000] == 1
    assert power[0.03, 2000, 10_000] >= 0.95


def test_detect_drift_ignores_negligible_drift_of_a_million_rows() -> None:
    """Log odds rise by 0.05: significant with so many rows, and negligible."""
    random = np.random.default_rng(0)
    items = traffic(random, 200_000)
    odds = np.log(items[1]) - np.log1p(-items[1]) + 0.05
    found = detect_drift(sketched(items), np.tile(expit(odds), (5, 1)), items[2] * 5)
    assert all(difference.adjusted_p < 1e-9 for difference in found.labels.values())
    assert all(difference.distance < MIN_DISTANCE for difference in found.labels.values())
    assert found.warnings == []
    far = detect_drift(sketched(items), expit(odds + 1))
    assert len(far.warnings) == 5
    assert far.presence is None


def test_detect_drift_warns_of_a_rare_label_by_its_thresholds() -> None:
    """The positives of a label of 2 % disappear: at most 2 % of the items have moved."""
    random = np.random.default_rng(1)
    reference = sketched(traffic(random, 20_000, prevalence=0.02))
    _, probabilities, presence = traffic(random, 20_000, prevalence=0.0)
    found = detect_drift(reference, probabilities, presence)
    assert all(difference.distance < MIN_DISTANCE for difference in found.labels.values())
    for difference in found.labels.values():
        assert difference.upper is not None
        assert difference.upper_before is not None
        assert difference.upper < difference.upper_before / MIN_TAIL_RATIO
        assert difference.warning is not None
        assert "score as high as the top " in difference.warning


def test_detect_drift_warns_of_a_changed_mix_of_modalities() -> None:
    random = np.random.default_rng(2)
    reference = sketched(traffic(random, 3000))
    targets, probabilities, _ = traffic(random, 3000)
    _, _, presence = traffic(random, 3000, images=0.4)
    found = detect_drift(reference, probabilities, presence)
    (warning,) = found.warnings
    assert warning.startswith("the mix of modalities has drifted from the calibration split (")
    assert warning.endswith("the stated miss rate of 10 % is not guaranteed on this traffic")
    unheard = detect_drift(reference, probabilities, ["video"] * 3000).presence
    assert unheard is not None
    assert unheard.distance == 1
    assert unheard.warning is not None
    assert "100 % of the items have video, 0 % had" in unheard.warning
    assert len(targets) == 3000


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=2, max_size=8))
def test_homogeneity_equals_scipy(pairs: list[tuple[int, int]]) -> None:
    table = np.array(pairs).T
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2 or not table.sum(axis=1).all():
        assert homogeneity(table) == (0, 0, 1)
        return
    peer = chi2_contingency(table, correction=False)
    assert homogeneity(table) == pytest.approx((peer.statistic, peer.dof, peer.pvalue), abs=1e-12)


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(0, 200), st.sampled_from([0, 0.5, 4]), st.integers(0, 99))
def test_detect_drift_accepts_any_sizes_ties_and_gaps(before: int, now: int, step: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    items, new = traffic(random, before, step=step), traffic(random, now, step=step)
    new[1][random.random(new[1].shape) < 0.1] = np.nan
    reference = sketched(items)
    assert DriftReference.from_dict(json.loads(json.dumps(reference.to_dict()))) == reference
    assert all(sum(label.counts) == before for label in reference.labels.values())
    found = detect_drift(reference, new[1], new[2])
    for i, difference in enumerate(found.labels.values()):
        assert difference.items == (~np.isnan(new[1][:, i])).sum()
        assert 0 <= difference.p_value <= difference.adjusted_p <= 1
        assert 0 <= difference.distance <= 1
    again = detect_drift(reference, new[1].astype(np.float32), new[2])
    assert again == found, "float32 and float64 are put into the same bins"


def test_drift_reference_is_small_and_counts_items_above_its_edges() -> None:
    items = traffic(np.random.default_rng(3), 50_000)
    conformal = fit_conformal(items[0], items[1], LABELS, ConformalSpec())
    reference = DriftReference.of(items[1], conformal, items[2])
    assert len(json.dumps(reference.to_dict())) < 8_000
    assert dict(reference.presence) == {name: items[2].count(name) for name in sorted(PATTERNS)}
    label, read = reference.labels["b"], items[1][:, 1].astype(np.float32)
    assert label.review in label.edges
    for i, edge in enumerate(label.edges):
        assert sum(label.counts[i + 1 :]) == (read >= np.float32(edge)).sum()


def test_detect_drift_refuses_a_wrong_number_of_columns() -> None:
    with pytest.raises(ValueError, match=r"\[N, 5\]"):
        detect_drift(sketched(traffic(np.random.default_rng(4), 100)), np.zeros((3, 2)))
