"""Sampling weights: columns of a predictions table that tell how many items a row represents."""

import numpy as np
import pyarrow as pa
import pytest

from vigil_data.errors import UserError
from vigil_evaluation.sampling_weights import read_sampling_weights

TARGETS_NL = np.array([[1.0, np.nan], [np.nan, np.nan], [0.0, 1.0]])


def test_read_sampling_weights_without_columns() -> None:
    weights = read_sampling_weights(pa.table({"id": ["a", "b", "c"]}), TARGETS_NL)
    assert weights.label_N is None
    assert weights.item_N is None


def test_read_sampling_weights_of_a_labelled_part_leaves_traffic_unweighted() -> None:
    weights = read_sampling_weights(pa.table({"inclusion_probability": [1.0, None, 0.1]}), TARGETS_NL)
    np.testing.assert_allclose(weights.label_N, [1, 0, 10])
    assert weights.item_N is None


def test_read_sampling_weights_of_a_labelled_sample_weights_traffic_too() -> None:
    table = pa.table({"inclusion_probability": [1.0, 0.5, 0.1], "weight": [2, 1, 1]})
    weights = read_sampling_weights(table, np.array([[1.0], [0.0], [1.0]]))
    np.testing.assert_allclose(weights.label_N, [2, 2, 10])
    np.testing.assert_allclose(weights.item_N, weights.label_N)
    np.testing.assert_allclose(weights.take(np.array([2])).item_N, [10])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"inclusion_probability": [1.0, None, 0.0]}, r"inclusion_probability has 1 values of rows .* the first 0 in row 3"),
        ({"inclusion_probability": [1.5, None, 1.0]}, r"not in \(0, 1\], the first 1.5 in row 1"),
        ({"inclusion_probability": [None, 0.5, 1.0]}, r"the first null in row 1"),
        ({"inclusion_probability": ["1", "1", "1"]}, r"column inclusion_probability is not numeric"),
        ({"weight": [1.0, None, 1.0]}, r"weight has 1 values that are not positive and finite, the first null in row 2"),
        ({"weight": [1.0, float("inf"), -1.0]}, r"weight has 2 values"),
    ],
)
def test_read_sampling_weights_rejects(columns: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_sampling_weights(pa.table(columns), TARGETS_NL)


def test_inclusion_probabilities_are_those_of_the_table_after_taking_rows() -> None:
    table = pa.table({"inclusion_probability": [0.5, None, 0.1], "weight": [3.0, 1.0, 2.0]})
    weights = read_sampling_weights(table, TARGETS_NL)
    np.testing.assert_allclose(weights.inclusion_N, [0.5, np.nan, 0.1])
    np.testing.assert_allclose(weights.take(np.array([2, 0])).inclusion_N, [0.1, 0.5])
    rows = read_sampling_weights(table.select(["weight"]), TARGETS_NL)
    assert rows.take(np.array([0, 1])).inclusion_N is None
