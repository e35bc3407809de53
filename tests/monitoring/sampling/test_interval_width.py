"""Intervals of prevalence from drawn samples: they cover the truth and are at most half as wide as those of uniform samples."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from simulated_traffic import simulate_traffic

from vigil_monitoring.sampling.design import Design
from vigil_monitoring.sampling.draw import draw
from vigil_monitoring.survey.cells import Answers, Cell
from vigil_monitoring.survey.estimators import estimate_mean
from vigil_monitoring.survey.probability_sample import ProbabilitySample
from vigil_monitoring.traffic.reader import open_traffic

ITEMS, BUDGET = 40_000, 500
DESIGNS = {"uniform": {"audit": 1.0, "strata": {"bands": []}}, "prevalence": {}}


@pytest.mark.prove
def test_intervals_of_the_prevalence_design_cover_and_are_half_as_wide(tmp_path: Path, proofs: Callable[[int, int], int]) -> None:
    """Prevalence 0.2 %, 500 reviews, by items and by exposure, from reviews alone; each truth is drawn from the probabilities."""
    times = proofs(5, 1_000)
    table, _ = simulate_traffic(ITEMS, 3, prevalence=0.002)
    pq.write_table(table, tmp_path / "t.parquet")
    traffic = open_traffic(tmp_path / "t.parquet")
    p_N = table.column("probability.hate").to_numpy().astype(float)
    mass_N = {"items": np.ones(ITEMS), "exposure": table.column("exposure").to_numpy()}
    random = np.random.default_rng(4)
    widths: dict[tuple[str, str], list[float]] = {}
    covered: dict[tuple[str, str], int] = {}
    for seed in range(times):
        y_N = (random.random(ITEMS) < p_N).astype(float)
        drawn = DESIGNS if seed < 50 else {"prevalence": DESIGNS["prevalence"]}  # coverage needs more samples than widths
        for name, keys in drawn.items():
            design = Design.model_validate({"purposes": [{"kind": "prevalence"}], **keys})
            queue = draw(traffic, design, BUDGET, seed).queue.table
            rows = np.array([int(id_[5:]) for id_ in queue.column("id").to_pylist()])
            _, strata = np.unique(queue.column("stratum").to_pylist(), return_inverse=True)
            sample = ProbabilitySample(queue.column("inclusion_probability").to_numpy(), strata)
            for weight, mass in mass_N.items():
                found = estimate_mean(Cell(mass[rows], mass.sum()), Answers(y_N[rows], sample))
                assert found.interval is not None
                widths.setdefault((name, weight), []).append(found.interval.high - found.interval.low)
                truth = (mass * y_N).sum() / mass.sum()
                inside = found.interval.low <= truth <= found.interval.high
                covered[name, weight] = covered.get((name, weight), 0) + inside
    for weight in mass_N:
        ours, uniform = (float(np.mean(widths[name, weight])) / 2 for name in ("prevalence", "uniform"))
        share = covered["prevalence", weight] / times
        print(
            f"{times} samples, by {weight}: ±{ours:.5f}, uniform ±{uniform:.5f}, ratio {ours / uniform:.2f}; covered {share:.3f}"
        )
        assert ours <= 0.5 * uniform
        if times >= 1_000:
            assert 0.92 <= share <= 0.98
