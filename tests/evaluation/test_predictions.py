"""read_predictions and prediction_arrays: every mistake of a table is reported at once, one line each."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vigil_data.errors import UserError
from vigil_evaluation.predictions import prediction_arrays, prediction_labels, read_predictions

LABELS = ("tobacco", "scams", "unlabelled")


def test_prediction_arrays_reports_every_mistake_at_once() -> None:
    table = pa.table(
        {
            "id": ["a", "b", "a", None],
            "target.x": pa.array([0, 1, 2, None], pa.float32()),
            "probability.x": pa.array([0.5, None, float("nan"), 0.5], pa.float32()),
            "target.y": ["yes", "no", "no", "no"],
        }
    )
    with pytest.raises(UserError) as raised:
        prediction_arrays(table, ("x", "y"))
    assert list(raised.value.lines) == [
        "predictions: 1 rows have no id",
        "predictions: 1 rows repeat an id, the first is a",
        "predictions: column target.x has 1 values that are not in [0, 1], the first 2.0 in row 2",
        "predictions: column probability.x has 2 values that are not in [0, 1], the first nan in row 1",
        "predictions: column target.y is not numeric",
        "predictions: column probability.y is absent",
    ]


def test_read_predictions_returns_what_was_written(random_table: pa.Table, tmp_path: Path) -> None:
    pq.write_table(random_table, tmp_path / "predictions.parquet")
    table = read_predictions(tmp_path / "predictions.parquet")
    assert prediction_labels(table) == LABELS
    for ours, theirs in zip(prediction_arrays(table, LABELS), prediction_arrays(random_table, LABELS), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("content", [None, b"", b"id,target.x\n1,0\n"])
def test_read_predictions_refuses_other_files_in_one_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_predictions(path)
    assert len(raised.value.lines) == 1
    assert str(path) in raised.value.lines[0]
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(UserError, match="no label has both columns"):
        read_predictions(path)
