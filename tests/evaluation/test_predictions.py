"""read_predictions and prediction_arrays: every mistake of a table is reported at once, one line each."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vigil_data.errors import UserError
from vigil_evaluation.predictions import (
    labelled,
    prediction_arrays,
    prediction_labels,
    read_predictions,
    scored_items,
    with_probabilities,
)

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
        "predictions: rows without an id: 1",
        "predictions: rows that repeat an id: 1, the first id is a",
        "predictions: column target.x has 1 value outside [0, 1], the first 2 in row 3",
        "predictions: column probability.x has 2 values outside [0, 1], the first null in row 2",
        "predictions: column target.y has type string; it must be numeric",
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
    for table, message in (
        (pa.table({"id": ["a"], "target.x": [1.0]}), "has no column probability.LABEL; its columns are id, target.x"),
        (pa.table({"id": pa.array([], pa.string()), "probability.x": pa.array([], pa.float32())}), "the table has no rows"),
    ):
        pq.write_table(table, path)
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: {message}"):
            read_predictions(path)


def test_prediction_arrays_reads_truth_values_as_targets() -> None:
    table = pa.table({"id": ["a", "b", "c"], "target.x": [True, None, False], "probability.x": [0.5, 0.25, 1.0]})
    targets_NL, probabilities_NL = prediction_arrays(table, ("x",))
    np.testing.assert_array_equal(targets_NL[:, 0], [1.0, np.nan, 0.0])
    np.testing.assert_array_equal(probabilities_NL[:, 0], [0.5, 0.25, 1.0])
    with pytest.raises(UserError, match=r"column probability.x has type bool; it must be numeric"):
        prediction_arrays(table.set_column(2, "probability.x", [[True, True, False]]), ("x",))


def test_prediction_arrays_of_a_table_without_targets_are_unknown() -> None:
    table = pa.table({"id": ["a", "b"], "probability.x": [0.5, 0.25], "target.y": [1.0, None], "probability.y": [1.0, 0.0]})
    assert prediction_labels(table) == ("x", "y")
    assert labelled(table, ("x", "y")) == ("y",)
    targets_NL, _ = prediction_arrays(table, ("x", "y"))
    np.testing.assert_array_equal(targets_NL, [[np.nan, 1.0], [np.nan, np.nan]])


def test_scored_items_leaves_out_items_with_an_error() -> None:
    table = pa.table({"id": ["a", "b"], "probability.x": [0.5, None], "error": [None, "image 1: truncated"]})
    kept, failed = scored_items(table, "scores.parquet")
    assert (kept.column("id").to_pylist(), failed) == (["a"], 1)
    with pytest.raises(UserError, match=r"^scores.parquet: all 1 items have an error and no probabilities, the first: image 1"):
        scored_items(table.slice(1), "scores.parquet")
    assert scored_items(kept.drop_columns(["error"]), "scores.parquet")[1] == 0


def test_with_probabilities_replaces_the_columns_of_the_labels(random_table: pa.Table) -> None:
    _, probabilities_NL = prediction_arrays(random_table, ("scams",))
    table = with_probabilities(random_table, ("scams",), 1 - probabilities_NL)
    assert table.column_names == random_table.column_names
    np.testing.assert_allclose(table.column("probability.scams").to_numpy(), 1 - probabilities_NL[:, 0], atol=1e-6)
    unchanged = [name for name in table.column_names if name != "probability.scams"]
    assert table.select(unchanged).equals(random_table.select(unchanged))
