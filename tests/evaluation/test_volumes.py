"""measure_volumes: shares of flagged items agree with plain counts, with and without targets and weights."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from vigil_evaluation.evaluation_data import EvaluationData
from vigil_evaluation.specs import EvaluationSpec
from vigil_evaluation.stats.binomial import wilson
from vigil_evaluation.volumes import measure_volumes

Make = Callable[..., pa.Table]
THRESHOLDS = {"tobacco": 0.5, "scams": 0.61, "unlabelled": 0.2}


def data_of(table: pa.Table, **settings: object) -> EvaluationData:
    return EvaluationData.from_table(table, list(THRESHOLDS), THRESHOLDS, EvaluationSpec(**settings))


def test_measure_volumes_counts_all_items_in_each_group(random_table: pa.Table) -> None:
    unlabelled = random_table.select([name for name in random_table.column_names if not name.startswith("target.")])
    volumes = measure_volumes(data_of(unlabelled, slices=("language",)))
    assert volumes == measure_volumes(data_of(random_table, slices=("language",)))
    flagged = {k: random_table.column(f"probability.{k}").to_numpy() >= np.float32(t) for k, t in THRESHOLDS.items()}
    assert [breakdown.column for breakdown in volumes.by] == ["presence", "language"]
    for column, groups in [(None, [volumes.overall]), *((breakdown.column, breakdown.groups) for breakdown in volumes.by)]:
        for group in groups:
            rows = np.ones(400, bool)
            if column is not None:
                rows = np.array([value == group.value for value in random_table.column(column).to_pylist()])
            assert group.items == rows.sum()
            assert group.any_label.value == pytest.approx(np.any(list(flagged.values()), axis=0)[rows].mean())
            for label, share in group.labels.items():
                assert share.value == pytest.approx(flagged[label][rows].mean())
                low, high = wilson(int(flagged[label][rows].sum()), int(rows.sum()), 0.95)
                assert share.interval == pytest.approx((low, high), abs=0.03)


def test_measure_volumes_has_no_intervals_without_replicates(random_table: pa.Table) -> None:
    volumes = measure_volumes(data_of(random_table, replicates=0))
    assert volumes.overall.any_label.interval is None


def test_measure_volumes_weights_rows_by_the_items_that_they_represent(table_of: Make) -> None:
    """Half of the traffic, in which flags are rare, is sampled at a tenth of the rate of the other half."""
    random, covered = np.random.default_rng(0), 0
    for seed in range(200):
        rare = random.random(2000) < 0.5
        kept = np.where(rare, random.random(2000) < 0.1, True)
        rare, rows = rare[kept], int(kept.sum())
        scores = np.where(random.random(rows) < np.where(rare, 0.1, 0.5), 0.9, 0.1)
        table = table_of({"a": ([None] * rows, scores)}, weight=np.where(rare, 10.0, 1.0))
        spec = EvaluationSpec(replicates=200, seed=seed)
        share = measure_volumes(EvaluationData.from_table(table, ["a"], {"a": 0.5}, spec)).overall.labels["a"]
        assert share.value == pytest.approx(np.average(scores >= 0.5, weights=np.where(rare, 10, 1)))
        assert share.interval is not None
        covered += share.interval.low <= 0.3 <= share.interval.high
    assert 180 <= covered <= 198  # 95 % of 200, within 3 standard errors
