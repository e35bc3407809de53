"""choose_thresholds: best F1 by brute force, in the middle of a gap, the same in float32 and float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_evaluation.metrics import f1_at
from vigil_evaluation.metrics.thresholds import choose_thresholds

scores = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1, width=32))
rows = st.lists(st.tuples(st.sampled_from([0.0, 1.0, float("nan")]), scores), min_size=1, max_size=40)


def columns(pairs: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    targets, probabilities = zip(*pairs, strict=True)
    return np.array(targets, np.float32), np.array(probabilities, np.float32)


@given(rows)
def test_choose_thresholds_has_the_best_f1(pairs: list[tuple[float, float]]) -> None:
    targets, probabilities = columns(pairs)
    (threshold,) = choose_thresholds(targets[:, None], probabilities[:, None])
    found = f1_at(targets, probabilities, threshold)
    if found is None:
        assert threshold == 0.5
        return
    others = [f1_at(targets, probabilities, float(t)) for t in [*probabilities, 2.0]]
    assert found == max(other for other in others if other is not None)
    stricter = [float(t) for t in probabilities if t > threshold and f1_at(targets, probabilities, float(t)) == found]
    assert all(np.array_equal(known(targets, probabilities, t), known(targets, probabilities, threshold)) for t in stricter)


def known(targets: np.ndarray, probabilities: np.ndarray, threshold: float) -> np.ndarray:
    return (probabilities >= threshold)[~np.isnan(targets)]


@given(rows)
def test_choose_thresholds_decides_the_same_in_float32_and_float64(pairs: list[tuple[float, float]]) -> None:
    targets, probabilities = columns(pairs)
    (threshold,) = choose_thresholds(targets[:, None], probabilities[:, None])
    assert 0 <= threshold <= 1
    np.testing.assert_array_equal(probabilities >= np.float32(threshold), probabilities.astype(np.float64) >= threshold)


def test_choose_thresholds_takes_the_middle_of_the_gap() -> None:
    targets = np.array([[0, 1, np.nan], [0, 0, np.nan], [1, 1, 1], [1, np.nan, 1]])
    probabilities = np.array([[0.125, 0.9, 0.3], [0.25, 0.1, 0.3], [0.75, 0.8, 0.4], [0.875, 0.85, 0.2]])
    assert choose_thresholds(targets, probabilities) == [0.5, pytest.approx(0.45), 0.5]


def test_choose_thresholds_between_adjacent_floats() -> None:
    low, high = np.float32(0.3), np.nextafter(np.float32(0.3), np.float32(1))
    (threshold,) = choose_thresholds(np.array([[0], [1]]), np.array([[low], [high]]))
    assert low < threshold <= high


def test_choose_thresholds_takes_the_strictest_of_equal_f1() -> None:
    assert choose_thresholds(np.array([[1], [0], [1], [0]]), np.array([[0.9], [0.7], [0.5], [0.3]]))[0] == pytest.approx(0.4)
    # Flagging the first alone and flagging all four both have F1 = 2 / 3.
    assert choose_thresholds(np.array([[1], [0], [0], [1]]), np.array([[0.9], [0.7], [0.5], [0.3]]))[0] == pytest.approx(0.8)


def test_choose_thresholds_refuses_unequal_shapes() -> None:
    with pytest.raises(ValueError, match=r"\[N, L\]"):
        choose_thresholds(np.zeros(3), np.zeros(3))
