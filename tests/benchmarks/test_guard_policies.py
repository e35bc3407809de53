"""benchmarks/guard_policies.py: every part on a tiny run, and what it makes of guards that read policies, or do not."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vigil_data.errors import UserError
from vigil_training.recipe.recipe import Recipe
from vigil_training.runs.run import Run

FILE = Path(__file__).parents[2] / "benchmarks" / "guard_policies.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("guard_policies_benchmark", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(
    make_guard_recipe: Callable[..., Recipe], train: Callable[[Recipe, Path], Run], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A tiny guard, of three steps, that saw no target of ``bright``."""
    recipe = make_guard_recipe(data__where="`target:bright` IS NULL", training__max_steps=3)
    return train(recipe, tmp_path_factory.mktemp("guards") / "tiny")


def test_benchmark_measures_every_part_of_a_tiny_run(
    benchmark: ModuleType, run: Run, trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--items", "25", "--encoder", str(trained.path), "--held-out", str(run.path), "--label", "bright"]
    rows = benchmark.main([str(run.path), *options])
    assert [(row.part, row.of) for row in rows if row.part == "AUROC bright"][-1] == ("AUROC bright", "never trained on")
    compared = ["guard", "zero-shot", "other name and definition", "encoder"]
    expected = [*compared, *(f"guard - {name}" for name in compared[1:])]
    assert [row.of for row in rows if row.part == "AUROC cat"] == expected
    assert {row.part for row in rows} == {"AUROC cat", "AUROC bright", "follows the text", "clauses shuffled"}
    held_out, own = (next(r for r in rows if r.part == "AUROC bright" and r.of == of) for of in ("never trained on", "guard"))
    assert held_out[2:] == own[2:], "the same run, items and text"
    assert all(0 <= row.value <= 1 for row in rows if " - " not in row.of and row.count)
    printed = capsys.readouterr().out
    assert all(row.of in printed for row in rows)


def test_benchmark_refuses_a_run_that_knows_the_label(benchmark: ModuleType, run: Run, trained: Run) -> None:
    options = ["--items", "5", "--no-zero-shot", "--held-out", str(run.path), "--label", "cat"]
    with pytest.raises(UserError, match=r"it was trained on .* targets of cat; hold out their items with data\.where"):
        benchmark.main([str(run.path), *options])
    with pytest.raises(UserError, match=r"model\.kind is fusion; give a guard's run"):
        benchmark.main([str(trained.path)])


class Labels:
    """Stands for a model: the benchmark asks it nothing, since its answers are replaced."""

    labels = ("a", "b", "c")


def answering(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, answer: Callable[[np.ndarray, tuple[int, ...]], float]
) -> Any:
    """Replace the answers of all models by a function of an item's targets and the labels of the policy, in their order."""

    def answers(model: Any, test: Any, asks: Any, what: str) -> list[np.ndarray]:
        return [
            np.array([answer(targets_L, tuple(clause % 3 for clause in policy)) for policy in policies])
            for targets_L, policies in zip(test.targets_NL, asks, strict=True)
        ]

    monkeypatch.setattr(benchmark, "answers", answers)
    random = np.random.default_rng(0)
    targets_NL = random.choice([0.0, 1.0, np.nan], (200, 3)).astype(np.float32)
    return benchmark.Test([], targets_NL, [str(n) for n in range(200)])


def test_benchmark_tells_a_guard_that_reads_policies_from_one_that_does_not(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = benchmark.Texts((), 3)

    def reads(targets_L: np.ndarray, labels: tuple[int, ...]) -> float:
        return 3.0 if max(np.nan_to_num(targets_L[list(labels)])) >= 0.5 else -3.0

    test = answering(benchmark, monkeypatch, reads)
    pairs = list(benchmark.measure_pairs(Labels, texts, test))
    assert [row.value for row in pairs] == [1.0] * 4
    differing = sum(int((row >= 0.5).sum()) * int((row < 0.5).sum()) for row in test.targets_NL)
    assert [row.count for row in pairs[:2]] == [2 * differing, differing]
    assert all(row.value == row.low == row.high == 0 for row in benchmark.measure_order(Labels, texts, test, 0))
    areas = [row for row in benchmark.measure_areas({"guard": Labels}, texts, test, None, 0) if row.of == "guard"]
    assert [row.value for row in areas] == [1.0] * 3

    test = answering(benchmark, monkeypatch, lambda targets_L, labels: 3.0 * float(targets_L[0] >= 0.5) - 1)
    assert [row.value for row in benchmark.measure_pairs(Labels, texts, test)] == [0.5, 0.0] * 2

    test = answering(benchmark, monkeypatch, lambda targets_L, labels: float(labels[0]))
    changes = next(iter(benchmark.measure_order(Labels, texts, test, 0)))
    logistic = [1 / (1 + math.exp(-first)) for first in (0, 1, 2)]
    assert min(abs(changes.value - (logistic[n] - logistic[0])) for n in (0, 1, 2)) < 1e-12


def test_benchmark_areas_are_those_of_scikit_learn_with_intervals_that_hold_them(benchmark: ModuleType) -> None:
    random = np.random.default_rng(0)
    targets_N = (random.random(300) < 0.3).astype(float)
    scores = {"good": targets_N + random.normal(0, 1, 300), "bad": random.normal(0, 1, 300)}
    found = {name: (value, low, high) for name, value, low, high in benchmark.areas(targets_N, scores, 0)}
    for name, of in scores.items():
        assert found[name][0] == pytest.approx(roc_auc_score(targets_N, of))
    assert found["good - bad"][0] == pytest.approx(found["good"][0] - found["bad"][0])
    assert all(low < value < high for value, low, high in found.values())
    assert found["bad"][1] < 0.5 < found["bad"][2]
    assert found["good - bad"][1] > 0
