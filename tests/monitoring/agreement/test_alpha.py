"""Krippendorff's alpha against his published example and the package `krippendorff`."""

import warnings
from typing import Any

import numpy as np
import pytest

from vigil_monitoring.agreement.alpha import Level, krippendorff_alpha

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import krippendorff

NAN = float("nan")
# Krippendorff (2011), part C: four observers, twelve units, five categories, missing answers.
PUBLISHED_WN = np.array([
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
])  # fmt: skip


def of_matrix(answers_WN: np.ndarray[Any, Any], level: Level, replicates: int = 0) -> Any:
    _, item_A = np.nonzero(np.full(answers_WN.shape, True))
    return krippendorff_alpha(item_A, answers_WN.ravel(), level, replicates=replicates)


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_that_of_the_published_example(level: Level, published: float) -> None:
    found = of_matrix(PUBLISHED_WN, level)
    assert found.value == pytest.approx(published, abs=5e-4)
    assert (found.items, found.answers) == (11, 40)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_equals_the_package_on_random_answers(level: Level) -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        values = np.sort(random.choice(20, size=random.integers(2, 7), replace=False) / 19)
        answers_WN = random.choice(values, size=(random.integers(2, 7), random.integers(5, 40)))
        answers_WN[random.random(answers_WN.shape) < 0.4] = NAN
        answers_WN[0, :2], answers_WN[1, :2] = values[:2], values[:2]  # never without two different pairable answers
        expected = krippendorff.alpha(answers_WN, level_of_measurement=level)
        assert of_matrix(answers_WN, level).value == pytest.approx(expected, abs=1e-12)


def test_alpha_is_undefined_where_all_answers_are_equal() -> None:
    found = of_matrix(np.ones((3, 8)), "nominal", replicates=50)
    assert (found.value, found.interval, found.items) == (None, None, 8)
    assert of_matrix(np.array([[1, NAN], [NAN, 0]]), "nominal").value is None


def test_alpha_interval_covers_the_alpha_of_many_items() -> None:
    random = np.random.default_rng(0)

    def answers(items: int) -> np.ndarray[Any, Any]:
        truth_N = random.random(items) < 0.3
        answers_WN = np.where(random.random((4, items)) < 0.15, ~truth_N, truth_N).astype(float)
        answers_WN[random.random(answers_WN.shape) < 0.3] = NAN
        return answers_WN

    true = of_matrix(answers(100_000), "nominal").value
    repetitions = 150
    covered = 0
    for _ in range(repetitions):
        found = of_matrix(answers(150), "nominal", replicates=200)
        covered += found.interval.low <= true <= found.interval.high
    assert 0.9 <= covered / repetitions <= 0.993  # 0.95, plus and minus some standard errors
