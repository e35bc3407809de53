import numpy as np
import pytest

from vigil_monitoring.survey.expected_targets import targets_by_design, targets_by_predictions


def test_targets_by_design_are_the_mean_where_sizes_are_equal() -> None:
    targets_N = (np.arange(50) < 8).astype(float)
    assert targets_by_design(targets_N, np.full(50, 3.0)) == pytest.approx(np.full(50, 0.16))


@pytest.mark.parametrize("share", [0.02, 0.98])
def test_targets_by_design_have_odds_of_the_rarer_kind_that_fall_with_the_squared_size(share: float) -> None:
    random = np.random.default_rng(0)
    sizes_N = np.exp(random.normal(size=400))
    targets_N = (random.random(400) < share).astype(float)
    expected_N = targets_by_design(targets_N, sizes_N)
    assert expected_N.sum() == pytest.approx(targets_N.sum(), rel=1e-4)
    odds_N = expected_N / (1 - expected_N) if share < 0.5 else (1 - expected_N) / expected_N
    assert odds_N * sizes_N**2 == pytest.approx(odds_N[0] * sizes_N[0] ** 2)


def test_targets_by_predictions_follow_calibrated_ones_and_ignore_useless_ones() -> None:
    random = np.random.default_rng(1)
    predictions_N = 1 / (1 + np.exp(-random.normal(-2, 2, 5_000)))
    targets_N = (random.random(5_000) < predictions_N).astype(float)
    found_N = targets_by_predictions(targets_N, predictions_N, np.ones(5_000))
    assert found_N is not None
    assert found_N == pytest.approx(predictions_N, abs=0.05)
    assert targets_by_predictions(targets_N, random.permutation(predictions_N), np.ones(5_000)) is None
