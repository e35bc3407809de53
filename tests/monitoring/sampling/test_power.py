"""Expected half-widths are those that samples have, and a design buys what it is meant to buy."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hajek import hajek_variance
from simulated_traffic import simulate_traffic

from vigil_monitoring.sampling.design import Design
from vigil_monitoring.sampling.draw import draw, expected_precision
from vigil_monitoring.sampling.power import Precision
from vigil_monitoring.traffic.reader import open_traffic


def found(results: list[Precision], metric: str, label: str, group: str, weight: str) -> Precision:
    [one] = [of for of in results if (of.metric, of.label, of.group, of.weight) == (metric, label, group, weight)]
    return one


@pytest.mark.prove
def test_expected_half_widths_are_those_of_repeated_samples(tmp_path: Path, proofs: Callable[[int, int], int]) -> None:
    """Hájek and difference estimates over draws, and over truths that are drawn from the probabilities."""
    times = proofs(25, 1_500)
    table, _ = simulate_traffic(3_000, 5, prevalence=0.15)
    pq.write_table(table, tmp_path / "t.parquet")
    traffic = open_traffic(tmp_path / "t.parquet")
    design = Design.model_validate(
        {
            "purposes": [{"kind": "prevalence"}, {"kind": "action_precision"}],
            "strata": {"bands": [0.03, 0.3], "columns": ["language"]},
        }
    )
    labels = ["hate", "spam"]
    p_LN = {label: table.column(f"probability.{label}").to_numpy().astype(float) for label in labels}
    p_LN["decisive label"] = np.maximum(p_LN["hate"], p_LN["spam"])
    z_N = {"items": np.ones(3_000), "exposure": table.column("exposure").to_numpy()}
    among = {
        "": np.ones(3_000, bool),
        "language de": np.array(table.column("language").to_pylist()) == "de",
        "action review": np.array(table.column("action").to_pylist()) == "review",
    }
    cases = [
        ("prevalence", "hate", "", "items"),
        ("prevalence", "spam", "", "exposure"),
        ("prevalence", "hate", "language de", "items"),
        ("precision", "decisive label", "action review", "items"),
    ]
    random = np.random.default_rng(1)
    errors: dict[tuple[str, ...], list[tuple[float, float]]] = {case: [] for case in cases}
    variances: dict[tuple[str, ...], list[np.ndarray]] = {case: [] for case in cases}
    for seed in range(times):
        drawn = draw(traffic, design, 300, seed)
        rows = np.array([int(id_[5:]) for id_ in drawn.queue.table.column("id").to_pylist()])
        probability_n = drawn.queue.table.column("inclusion_probability").to_numpy()
        weight_n, stratum_n = 1 / probability_n, np.array(drawn.queue.table.column("stratum").to_pylist())
        for case in cases:
            p_N, z = p_LN[case[1]], z_N[case[3]] * among[case[2]]
            y_N = random.random(3_000) < p_N
            truth = (y_N * z).sum() / z.sum()
            hajek = (weight_n * z[rows] * y_N[rows]).sum() / (weight_n * z[rows]).sum()
            difference = ((p_N * z).sum() + (weight_n * z[rows] * (y_N - p_N)[rows]).sum()) / z.sum()
            errors[case].append((hajek - truth, difference - truth))
            residual_2n = np.stack([z[rows] * (y_N[rows] - truth), z[rows] * (y_N - p_N)[rows]]) / z.sum()
            variances[case].append(hajek_variance(residual_2n, probability_n, stratum_n))
    for case in cases:
        one = found(drawn.precision, *case)
        expected = np.array([one.half_width, one.half_width_with_scores])
        estimated, actual = (1.96 * np.sqrt(np.mean(of, axis=0)) for of in (variances[case], np.square(errors[case])))
        print(f"{' '.join(case)}: expected {expected.round(5)}, estimated {estimated.round(5)}, actual {actual.round(5)}")
        assert estimated == pytest.approx(expected, rel=0.05 if times > 1_000 else 0.15)
        if times > 1_000:  # squared errors need more draws
            assert actual == pytest.approx(expected, rel=0.08)


def test_prevalence_design_halves_the_half_width_of_uniform_sampling(tmp_path: Path) -> None:
    """Prevalence 0.2 %, 500 reviews: by items and by exposure, with the shipped design's defaults."""
    table, _ = simulate_traffic(60_000, 3, prevalence=0.002)
    pq.write_table(table, tmp_path / "t.parquet")
    traffic = open_traffic(tmp_path / "t.parquet")
    results = {}
    for name, keys in {"uniform": {"audit": 1.0, "strata": {"bands": []}}, "prevalence": {}}.items():
        design = Design.model_validate({"purposes": [{"kind": "prevalence"}], **keys})
        results[name] = expected_precision(traffic, design, [500])[500]
    for label in ("hate", "spam"):
        for weight in ("items", "exposure"):
            uniform, ours = (found(results[name], "prevalence", label, "", weight) for name in ("uniform", "prevalence"))
            assert ours.half_width <= 0.5 * uniform.half_width
    uniform = found(results["uniform"], "prevalence", "hate", "", "items")
    assert uniform.half_width == pytest.approx(1.96 * np.sqrt(0.002 * 0.998 / 500 * (1 - 500 / 60_000)), rel=0.01)


def test_expected_precision_rises_with_the_budget_and_matches_the_draw(tmp_path: Path) -> None:
    table, _ = simulate_traffic(5_000, 3, prevalence=0.02)
    pq.write_table(table, tmp_path / "t.parquet")
    traffic = open_traffic(tmp_path / "t.parquet")
    design = Design.model_validate({"purposes": [{"kind": "prevalence"}], "strata": {"least": 10}})
    results = expected_precision(traffic, design, [20, 100, 400])
    assert list(results) == [100, 400]  # 20 are too few for seven strata of 10
    before, after = (found(results[budget], "prevalence", "hate", "", "items") for budget in (100, 400))
    assert after.half_width < 0.7 * before.half_width
    drawn = draw(traffic, design, 100, 9)
    assert found(drawn.precision, "prevalence", "hate", "", "items").half_width == pytest.approx(before.half_width, rel=1e-9)
    assert before.reviewed == pytest.approx(100)


def test_expected_precision_is_zero_if_every_row_is_reviewed(tmp_path: Path) -> None:
    table, _ = simulate_traffic(60, 3, prevalence=0.1)
    pq.write_table(table, tmp_path / "t.parquet")
    drawn = draw(open_traffic(tmp_path / "t.parquet"), Design.model_validate({"purposes": [{"kind": "prevalence"}]}), 60, 9)
    assert {of.half_width for of in drawn.precision} == {0.0}
