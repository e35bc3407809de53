"""Weighted metrics and their intervals under stratified review, in simulations with a known truth."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from vigil_evaluation.stats.bootstrap import METRICS, UNBOUNDED, MetricParameters, Resampling, replicate
from vigil_evaluation.stats.intervals import intervals

RATE, PRECISION, THRESHOLD = 0.1, 0.5, 0.3
POINTS = MetricParameters(RATE, PRECISION, np.array([THRESHOLD]))
Reviewed = Callable[[np.random.Generator, np.ndarray], np.ndarray]

REVIEWS: dict[str, Reviewed] = {
    "all of p >= .5, a tenth of the others": lambda _, p: np.where(p >= 0.5, 1.0, 0.1),
    "three strata: 5 %, 25 %, all": lambda _, p: np.array([0.05, 0.25, 1.0])[np.searchsorted([0.1, 0.4], p)],
    "all or a tenth, whatever the score": lambda random, p: random.choice([1.0, 0.1], len(p)),
}


class Population(NamedTuple):
    """Draws targets, probabilities and units of as many items."""

    draw: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray, np.ndarray | None]]
    rows: int


def scored(random: np.random.Generator, targets: np.ndarray, share: float, noise: np.ndarray | None = None) -> np.ndarray:
    """Probabilities of a known function of the target and noise."""
    scores = 1.5 * targets + (random.normal(size=len(targets)) if noise is None else noise)
    return 1 / (1 + np.exp(-(1.2 * (np.log(share / (1 - share)) + 1.5 * scores - 1.125) + 0.2)))


def synthetic(share: float, unit: int = 1) -> Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    def draw(random: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        if unit == 1:
            targets = (random.random(rows) < share).astype(float)
            return targets, scored(random, targets, share), None
        units = np.repeat(np.arange(rows // unit), unit)
        targets = (random.random(rows) < random.beta(3 * share, 3 * (1 - share), rows // unit)[units]).astype(float)
        noise = 0.6 * random.normal(size=rows // unit)[units] + 0.8 * random.normal(size=rows)
        return targets, scored(random, targets, share, noise), units.astype(np.int32)

    return draw


def edos(shared_data: Path) -> Population:
    """Draws from the test split of EDOS, its real labels and scores of a known function."""
    with next((shared_data / "text" / "edos").glob("edos_labelled_aggregated.csv")).open(encoding="utf-8", newline="") as file:
        of_split = [row["label_sexist"] == "sexist" for row in csv.DictReader(file) if row["split"] == "test"]
    truth = np.array(of_split, float)

    def draw(random: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        targets = random.choice(truth, rows)
        return targets, scored(random, targets, float(truth.mean())), None

    return Population(draw, len(truth))


def truth_of(population: Population, rows: int) -> dict[str, float]:
    targets, probabilities, _ = population.draw(np.random.default_rng(0), rows)
    found = replicate(targets[:, None], probabilities[:, None], [np.zeros(rows, np.int32)], POINTS, Resampling(0))
    return {name: float(values[0, 0]) for name, values in found.estimates.items()}


class Coverage(NamedTuple):
    """Share of intervals that hold the truth, and mean of the estimates, weighted and not, by metric."""

    held: dict[str, float]
    mean: dict[str, float]
    unweighted: dict[str, float]


def coverage(population: Population, review: Reviewed, truth: dict[str, float], tries: int, replicates: int) -> Coverage:
    held: dict[str, list[bool]] = {name: [] for name in METRICS}
    mean: dict[str, list[float]] = {name: [] for name in METRICS}
    unweighted: dict[str, list[float]] = {name: [] for name in METRICS}
    for seed in range(tries):
        random = np.random.default_rng(seed + 1)
        targets, probabilities, units = population.draw(random, population.rows)
        stated = review(random, probabilities)
        known = random.random(len(stated)) < stated
        cells = targets[known, None], probabilities[known, None], [np.zeros(int(known.sum()), np.int32)], POINTS
        clusters = None if units is None else np.unique(units[known], return_inverse=True)[1].astype(np.int32)
        found = replicate(*cells, Resampling(replicates, seed, clusters), weights_N=1 / stated[known])
        plain = replicate(*cells, Resampling(0))
        for name in METRICS:
            low, high = intervals(found.estimates[name], found.samples[name], 0.95)
            from_zero = name == "calibration_error" and found.calibrated_GL[0, 0]
            held[name].append((from_zero or low[0, 0] <= truth[name]) and truth[name] <= high[0, 0])
            mean[name].append(float(found.estimates[name][0, 0]))
            unweighted[name].append(float(plain.estimates[name][0, 0]))
    return Coverage(*({name: float(np.mean(values)) for name, values in one.items()} for one in (held, mean, unweighted)))


def check(name: str, population: Population, review: Reviewed, proofs: Callable[[int, int], int]) -> None:
    tries = proofs(20, 3000)
    truth = truth_of(population, proofs(300_000, 2_000_000) if population.rows != 4000 else 400_000)
    found = coverage(population, review, truth, tries, proofs(300, 1000))
    # A share of the proof scatters more than the bounds are wide.
    slack = 0.0 if tries >= 3000 else 3.5 * np.sqrt(0.05 * 0.95 / tries)
    for metric in METRICS:
        print(
            f"{name}: {metric} is {truth[metric]:.3f}, weighted {found.mean[metric]:.3f}, unweighted "
            f"{found.unweighted[metric]:.3f}, held {found.held[metric]:.1%}"
        )
    for metric in METRICS:
        # An interval from 0 can be wrong on one side alone.
        most = 0.98 if metric == "calibration_error" else 0.97
        assert 0.93 - slack <= found.held[metric] <= most + slack, metric
        if metric not in UNBOUNDED:
            assert abs(found.mean[metric] - truth[metric]) < 0.02 + slack / 10, metric


@pytest.mark.prove
@pytest.mark.parametrize("review", REVIEWS)
def test_weighted_intervals_cover_under_review(review: str, proofs: Callable[[int, int], int]) -> None:
    check(review, Population(synthetic(0.24), 5000), REVIEWS[review], proofs)


@pytest.mark.prove
def test_weighted_intervals_cover_under_review_of_units(proofs: Callable[[int, int], int]) -> None:
    review = "all of p >= .5, a tenth of the others"
    check(f"{review}, units of 4", Population(synthetic(0.2, 4), 6000), REVIEWS[review], proofs)


@pytest.mark.prove
def test_weighted_intervals_cover_on_edos(shared_data: Path, proofs: Callable[[int, int], int]) -> None:
    population = edos(shared_data)
    assert (population.rows, round(float(population.draw(np.random.default_rng(0), 400_000)[0].mean()), 2)) == (4000, 0.24)
    review = "all of p >= .5, a tenth of the others"
    check(f"EDOS, {review}", population, REVIEWS[review], proofs)
