"""A share of benchmarks/near_duplicates.py: what is planted among real texts and generated images is found, and nothing else."""

import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "near_duplicates.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("near_duplicates_benchmark", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_planted_texts_are_found_among_real_ones(
    benchmark: ModuleType, shared_data: Path, proofs: Callable[[int, int], int]
) -> None:
    base = benchmark.read_texts(shared_data / "text", 100_000)
    base = random.Random(0).sample(base, proofs(4_000, 95_000))
    texts, pairs = benchmark.plant_texts(base, len(base) // 10)
    prints = benchmark.TextPrints.of(texts)
    recall = benchmark.recall_by_edit(benchmark.clusters(prints, 0.6), pairs)
    assert recall["all"] >= 0.98
    assert min(recall.values()) >= 0.9
    found = benchmark.distinct_pairs(prints, 0.6)
    assert len(found) >= 0.9 * len(pairs)
    checked = set(random.Random(1).sample(sorted(found), min(len(found), 5_000)))
    assert len(benchmark.wrong_texts(texts, checked, pairs)) <= 0.01 * len(checked)


def test_planted_images_are_found_among_generated_ones(benchmark: ModuleType, proofs: Callable[[int, int], int]) -> None:
    prints, pairs = benchmark.plant_images(proofs(60, 10_000), proofs(20, 500), "pdq")
    assert benchmark.recall_by_edit(benchmark.clusters(prints, 47), pairs)["all"] >= 0.95
    found = benchmark.distinct_pairs(prints, 47)
    assert len(found - {(one, other) for one, other, _ in pairs}) <= 0.01 * len(found)


def test_wrong_texts_are_pairs_that_are_not_alike(benchmark: ModuleType) -> None:
    texts = ["a sentence about boats", "a sentence about boots", "what has this to do with it", "A SENTENCE about boats!"]
    assert benchmark.wrong_texts(texts, {(0, 1), (0, 2), (1, 3), (0, 3)}, [(0, 3, "case")]) == [(0, 2)]
    assert benchmark.recall_by_edit(np.array([0, 1, 2, 0]), [(0, 3, "case"), (1, 2, "emoji")]) == {
        "case": 1,
        "all": 0.5,
        "emoji": 0,
    }
