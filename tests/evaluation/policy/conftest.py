"""Simulated traffic to compile policies on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from vigil_evaluation.policy.specs import Policy


@pytest.fixture(scope="session")
def traffic() -> Callable[..., pa.Table]:
    """Make a predictions table of ``n`` items: spam (5 %), scam (10 %) and hate (2 %), calibrated, a share of targets unknown."""

    def make(n: int = 8000, seed: int = 0, unknown: float = 0.3, distance: float = 3.2, **columns: Any) -> pa.Table:
        random = np.random.default_rng(seed)
        table: dict[str, Any] = {"id": [f"item-{i}" for i in range(n)]}
        for label, prevalence in (("spam", 0.05), ("scam", 0.1), ("hate", 0.02)):
            positive = random.random(n) < prevalence
            score = random.normal(size=n) + distance * positive
            log_odds = np.log(prevalence / (1 - prevalence)) + distance * score - distance**2 / 2
            target = np.where(random.random(n) < unknown, np.nan, positive.astype(float))
            table[f"target.{label}"] = pa.array(target, pa.float32(), from_pandas=True)
            table[f"probability.{label}"] = (1 / (1 + np.exp(-log_odds))).astype(np.float32)
        table["presence"] = random.choice(["text", "text+image"], n).tolist()
        table["language"] = random.choice(["en", "de", "tr"], n, p=[0.7, 0.27, 0.03]).tolist()
        table["author"] = random.integers(0, n // 3, n)
        table["market"] = random.choice(["us", "de"], n).tolist()
        return pa.table(table | columns)

    return make


@pytest.fixture(scope="session")
def written() -> Callable[[str], Policy]:
    """Read a policy from YAML text without its name."""
    return lambda text: Policy.model_validate({"name": "test", **yaml.safe_load(text)})
