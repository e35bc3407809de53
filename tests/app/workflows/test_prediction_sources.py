"""Sampling columns travel from a manifest to every predictions table without being asked for."""

import csv
from pathlib import Path

import numpy as np
import pytest

from vigil.workflows.prediction_sources import load_predictions, score_rows
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.importers.manifest import Manifest
from vigil_evaluation.predictions import prediction_arrays
from vigil_evaluation.sampling_weights import read_sampling_weights

PROBABILITIES = [1.0, 0.1, 0.25, 1.0]
WEIGHTS = [2.0, 1.0, 0.5, 3e3]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Items of a stratified sample, imported from a CSV."""
    with (tmp_path / "m.csv").open("w", newline="") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["id", "text", "target.cat", "target.scam", "split", "inclusion_probability", "weight"])
        for n, (probability, weight) in enumerate(zip(PROBABILITIES, WEIGHTS, strict=True)):
            rows.writerow([f"p{n}", f"cat dog {n}", n % 2, n % 2, "test", probability, weight])
        rows.writerow(["t", "sun", "", "", "train", "", ""])
    manifest = Manifest(tmp_path / "m.csv")
    assert manifest.check() == 5
    write(tmp_path / "dataset", manifest.items())
    return tmp_path / "dataset"


@pytest.mark.parametrize("model", ["run", "bundle"])
def test_load_predictions_has_the_sampling_columns_of_a_manifest(
    model: str, dataset: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue("trained").path if model == "run" else request.getfixturevalue("exported").bundle
    label = "cat" if model == "run" else "scam"
    for predictions in (
        load_predictions(source, data=dataset),
        score_rows(source, Dataset(dataset), Dataset(dataset).rows("test")[::-1], ()),
    ):
        table = predictions.table.sort_by("id")
        assert table["inclusion_probability"].to_pylist() == PROBABILITIES
        assert table["weight"].to_pylist() == WEIGHTS
        weights = read_sampling_weights(table, prediction_arrays(table, [label])[0])
        assert weights.label_N is not None
        np.testing.assert_allclose(weights.label_N, np.array(WEIGHTS) / PROBABILITIES)
    assert "weight" not in load_predictions(source, data=dataset, split="train").table.column_names
