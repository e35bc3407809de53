"""Predictions tables to test with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

Make = Callable[..., pa.Table]


@pytest.fixture(scope="session")
def table_of() -> Make:
    """Make a predictions table of label to (targets, probabilities) and of further columns."""

    def make(labels: Mapping[str, tuple[Sequence[float | None], Sequence[float]]], **columns: Any) -> pa.Table:
        rows = len(next(iter(labels.values()))[0])
        table: dict[str, Any] = {"id": [f"item-{i}" for i in range(rows)]}
        for label, (targets, probabilities) in labels.items():
            table[f"target.{label}"] = pa.array(targets, pa.float32())
            table[f"probability.{label}"] = pa.array(probabilities, pa.float32())
        return pa.table(table | columns)

    return make


@pytest.fixture(scope="session")
def random_table(table_of: Make) -> pa.Table:
    """400 items, three labels of which one is never known, unknown targets, presence and two slices of which one has nulls."""
    random = np.random.default_rng(0)
    labels = {}
    for label, share in (("tobacco", 0.3), ("scams", 0.1), ("unlabelled", 0.0)):
        targets = (random.random(400) < share).astype(float)
        probabilities = np.clip(0.55 * targets + 0.6 * random.random(400), 0, 1)
        unknown = random.random(400) < (0.2 if share else 1.1)
        labels[label] = ([None if u else t for t, u in zip(targets, unknown, strict=True)], probabilities)
    return table_of(
        labels,
        presence=random.choice(["text", "text+image", "none"], 400).tolist(),
        language=[None if r < 0.1 else "en" if r < 0.7 else "de" for r in random.random(400)],
        functionality=random.choice(["negation", "homonym"], 400).tolist(),
    )
