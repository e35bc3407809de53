"""Intervals of a prevalence of 0.2 % from 500 labels, over repeated draws from traffic of known truth.

The shipped design `prevalence` chooses the probabilities; each repetition draws from them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from simulated_traffic import simulate_traffic

from vigil_monitoring.sampling.design import Design
from vigil_monitoring.sampling.draw import EarlierQueues
from vigil_monitoring.sampling.plan import columns_of_keys, make_plan, measure_population
from vigil_monitoring.sampling.population import Population
from vigil_monitoring.survey.cells import Answers, Cell
from vigil_monitoring.survey.estimators import Estimate, estimate_mean
from vigil_monitoring.survey.probability_sample import ProbabilitySample
from vigil_monitoring.traffic.reader import open_traffic

Floats = NDArray[np.float64]
LABELS, ITEMS, PREVALENCE = 500, 60_000, 0.002
LEAST, MOST = 0.93, 0.97
"""Range of the share of intervals that cover."""


class Simulated(NamedTuple):
    """Traffic of known truth, and the probabilities with which a design draws each row."""

    truth_N: Floats
    scores_N: Floats
    exposure_N: Floats
    probability_N: Floats
    strata_N: NDArray[np.int64]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    return simulate(tmp_path_factory.mktemp("traffic") / "traffic.parquet", slope=1.0)


@pytest.fixture(scope="module")
def overconfident(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    return simulate(tmp_path_factory.mktemp("overconfident") / "traffic.parquet", slope=1.5)


def simulate(file: Path, slope: float) -> Simulated:
    table, truth_NL = simulate_traffic(ITEMS, 3, prevalence=PREVALENCE, labels=("hate",), slope=slope)
    pq.write_table(table, file)
    traffic = open_traffic(file)
    population = Population(
        traffic, Design.model_validate({"purposes": [{"kind": "prevalence"}]}), None, EarlierQueues(()).keys(timed=True)
    )
    sizes = measure_population(population, LABELS, 0)
    plan = make_plan(sizes, LABELS)
    probabilities, strata = [], []
    columns = ["exposure", "reasons", *(f"probability.{label}" for label in population.labels), *columns_of_keys(population)]
    for rows in population.rows(dict.fromkeys(columns)):
        final_N = plan.final_S[rows.stratum_N]
        probabilities.append(plan.probabilities(final_N, sizes.of(rows)))
        strata.append(final_N)
    return Simulated(
        truth_NL[:, 0].astype(np.float64),
        table["probability.hate"].to_numpy().astype(np.float64),
        table["exposure"].to_numpy(),
        np.minimum(np.concatenate(probabilities), 1.0),
        np.concatenate(strata).astype(np.int64),
    )


def systematic(probability_N: Floats, strata_N: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Draw rows with their probabilities: systematically in random order, a fixed number from each stratum."""
    drawn = []
    for stratum in np.unique(strata_N):
        order_M = random.permutation(np.flatnonzero(strata_N == stratum))
        ends_M = np.cumsum(probability_N[order_M])
        points = np.arange(round(ends_M[-1])) + random.random()
        drawn.append(order_M[np.minimum(np.searchsorted(ends_M, points), len(order_M) - 1)])
    return np.concatenate(drawn)


class Shown(NamedTuple):
    """What intervals over repetitions show."""

    covered: float
    half_width: float
    error: float


def shown(estimates: list[Estimate], truth: float) -> Shown:
    ends = np.array([of.interval for of in estimates], np.float64)
    values = np.array([of.value for of in estimates], np.float64)
    covered = ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean()
    return Shown(float(covered), float((ends[:, 1] - ends[:, 0]).mean() / 2), float(np.sqrt(((values - truth) ** 2).mean())))


def repeat(of: Simulated, masses_N: Floats, scores_N: Floats | None, times: int) -> Shown:
    """Estimate the prevalence from repeated draws, with or without predictions."""
    random, estimates = np.random.default_rng(1), []
    mass = float(masses_N.sum())
    predicted = None if scores_N is None else float((masses_N * scores_N).sum())
    for _ in range(times):
        rows = systematic(of.probability_N, of.strata_N, random)
        sample = ProbabilitySample(of.probability_N[rows], of.strata_N[rows])
        answers = Answers(of.truth_N[rows], sample, None if scores_N is None else scores_N[rows])
        estimates.append(estimate_mean(Cell(masses_N[rows], mass, predicted), answers))
    return shown(estimates, float((masses_N * of.truth_N).sum() / mass))


def useless(of: Simulated) -> Floats:
    """Scores that say nothing, with the distribution of those that the design used."""
    return np.random.default_rng(5).permutation(of.scores_N)


@pytest.mark.prove
@pytest.mark.parametrize(
    ("scores", "weight"),
    [
        *((scores, weight) for scores in ("calibrated", "none", "useless") for weight in ("items", "exposure")),
        ("overconfident", "items"),
    ],
)
def test_intervals_cover_the_prevalence(
    simulated: Simulated, overconfident: Simulated, proofs: Callable[[int, int], int], weight: str, scores: str
) -> None:
    times = proofs(60, 1_000)
    of = overconfident if scores == "overconfident" else simulated
    masses_N = np.ones(ITEMS) if weight == "items" else of.exposure_N
    predictions_N = None if scores == "none" else useless(of) if scores == "useless" else of.scores_N
    found = repeat(of, masses_N, predictions_N, times)
    print(f"{scores}, {weight}: {found}")
    slack = 0.05 if times < 1_000 else 0.0
    assert LEAST - slack <= found.covered <= MOST + slack


@pytest.mark.prove
def test_half_width_is_at_most_half_of_uniform_sampling(simulated: Simulated, proofs: Callable[[int, int], int]) -> None:
    times = proofs(50, 1_000)
    even = simulated._replace(probability_N=np.full(ITEMS, LABELS / ITEMS), strata_N=np.zeros(ITEMS, np.int64))
    uniform = repeat(even, np.ones(ITEMS), None, times)
    powered = repeat(simulated, np.ones(ITEMS), simulated.scores_N, times)
    print(f"uniform {uniform}, design {powered}")
    assert powered.half_width <= 0.5 * uniform.half_width


@pytest.mark.prove
@pytest.mark.parametrize("quality", ["calibrated", "useless"])
def test_predictions_never_widen_intervals(simulated: Simulated, proofs: Callable[[int, int], int], quality: str) -> None:
    times = proofs(50, 1_000)
    scores_N = simulated.scores_N if quality == "calibrated" else useless(simulated)
    for masses_N in (np.ones(ITEMS), simulated.exposure_N):
        classical = repeat(simulated, masses_N, None, times)
        powered = repeat(simulated, masses_N, scores_N, times)
        print(f"{quality}: classical {classical}, powered {powered}")
        assert powered.half_width <= 1.02 * classical.half_width
        assert powered.error <= 1.02 * classical.error


@pytest.mark.prove
@pytest.mark.parametrize("weight", ["items", "exposure"])
def test_clustered_intervals_cover_the_process(proofs: Callable[[int, int], int], weight: str) -> None:
    """The population itself is drawn: 6,000 authors, of whom 1 in 200 is responsible for nearly all violations."""
    times = proofs(60, 1_000)
    random = np.random.default_rng(2)
    size_A = np.minimum(random.zipf(2.0, 40_000), 40)
    bad_A = random.random(40_000) < 0.005
    first_A = np.concatenate([[0], np.cumsum(size_A)])
    author_N = np.repeat(np.arange(len(size_A)), size_A)
    rate_N = np.where(bad_A[author_N], 0.4, 0.0002)
    truth_N = (random.random(len(rate_N)) < rate_N).astype(np.float64)
    noise_N = random.normal(size=len(rate_N))
    scores_N = 1 / (1 + np.exp(-(np.log(rate_N) * 0.7 - 1 + noise_N)))
    exposure_N = np.exp(random.normal(size=len(rate_N))) if weight == "exposure" else np.ones(len(rate_N))
    truth = float((exposure_N * truth_N).sum() / exposure_N.sum())
    found: dict[bool, list[Estimate]] = {True: [], False: []}
    for _ in range(times):
        chosen = random.integers(0, len(size_A), 6_000)
        rows = np.concatenate([np.arange(first_A[a], first_A[a + 1]) for a in chosen.tolist()])
        cluster_N = np.repeat(np.arange(len(chosen)), size_A[chosen])
        size_N = exposure_N[rows] * (0.2 * 0.05 + np.sqrt(scores_N[rows] * (1 - scores_N[rows])))
        probability_N = np.minimum(LABELS * size_N / size_N.sum(), 1.0)
        rest = probability_N < 1
        probability_N[rest] *= (LABELS - (~rest).sum()) / probability_N[rest].sum()
        probability_N = np.minimum(probability_N, 1.0)
        strata_N = (probability_N < 1).astype(np.int64)
        drawn = systematic(probability_N, strata_N, random)
        sample = ProbabilitySample(probability_N[drawn], strata_N[drawn])
        mass_N, score_N = exposure_N[rows], scores_N[rows]
        cell = Cell(mass_N[drawn], float(mass_N.sum()), float((mass_N * score_N).sum()))
        for clustered, estimates in found.items():
            clusters_N = cluster_N[drawn] if clustered else None
            estimates.append(estimate_mean(cell, Answers(truth_N[rows][drawn], sample, score_N[drawn], clusters_N)))
    clustered, plain = shown(found[True], truth), shown(found[False], truth)
    print(f"{weight}: clustered {clustered}, plain {plain}")
    slack = 0.05 if times < 1_000 else 0.0
    assert LEAST - slack <= clustered.covered <= MOST + slack
    assert plain.covered < clustered.covered
