"""recipes/comments.yaml on a small share of the real text sets, by the commands in its header."""

import csv
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.end_to_end

FOLDERS = {
    "davidson": 40,
    "edos": 20,
    "stormfront": 40,
    "hatemoji_build": 20,
    "toxic_spans": 40,
    "context_toxicity": 80,
    "surge_toxicity": 10,
}
"""Folder of each data set of the collection, and of how many rows one is kept."""


def share(source: Path, to: Path, keep: int) -> Path:
    """Keep every ``keep``-th row of a CSV file, as the files are ordered and their beginnings differ from the rest."""
    with source.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    to.parent.mkdir(parents=True, exist_ok=True)
    with to.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows[::keep]])
    return to


def test_comments_recipe_from_files_to_scores_of_a_bundle(vigil, shared_data: Path, tmp_path: Path) -> None:
    text, dataset, run, bundle = shared_data / "text", tmp_path / "dataset", tmp_path / "run", tmp_path / "bundle"
    for folder, keep in FOLDERS.items():
        for file in (text / folder).glob("*.csv"):
            share(file, tmp_path / "text" / folder / file.name, keep)

    vigil("data", "import", "recipes/collections/comments.yaml", tmp_path / "text", "--to", dataset)
    shown = vigil("data", "show", dataset).stdout
    assert "sexism" in shown

    shallow = ("model.encoders.text.config.num_hidden_layers=2", "model.encoders.text.frozen=2")
    overrides = (f"data.dataset={dataset}", "data.sampling.items=1500", *shallow, "tracking.mode=disabled")
    vigil("train", "recipes/comments.yaml", "--run", run, *overrides)
    vigil("evaluate", run, "--split", "test")
    metrics = json.loads((run / "evaluation" / "test" / "metrics.json").read_text(encoding="utf-8"))
    sexism = metrics["overall"]["labels"]["sexism"]
    # An untrained head gives .5; a fortieth of the data and one trained layer give far less than the complete recipe.
    assert sexism["auroc"] > 0.55
    # Only edos has this label, so rows of the other sets are not counted.
    assert 150 <= sexism["known"] <= 250 < metrics["overall"]["items"]

    vigil("export", run, "--to", bundle)
    vigil("verify", bundle)
    vigil("score", bundle, dataset, "--split", "test", "--to", tmp_path / "scores.parquet")
    import pyarrow.parquet as pq

    scores = pq.read_table(tmp_path / "scores.parquet").to_pydict()
    predictions = pq.read_table(run / "evaluation" / "test" / "predictions.parquet").to_pydict()
    assert sorted(scores["id"]) == sorted(predictions["id"])
    scored = dict(zip(scores["id"], scores["probability.sexism"], strict=True))
    predicted = dict(zip(predictions["id"], predictions["probability.sexism"], strict=True))
    assert all(abs(scored[i] - predicted[i]) < 1e-4 for i in predicted)
