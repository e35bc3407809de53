"""A small tri-modal demonstration with its real encoders, of text one layer, by the commands that `vigil demo` prints."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.end_to_end


def test_demo_commands_from_posts_pictures_and_speech_to_a_bundle(vigil, tmp_path: Path) -> None:
    dataset, run, bundle, scores = tmp_path / "dataset", tmp_path / "run", tmp_path / "bundle", tmp_path / "scores.parquet"
    vigil("data", "demo", dataset, "--items", "200")
    short = ("training.max_steps=3", "model.encoders.text.config.num_hidden_layers=1")
    overrides = (f"data.dataset={dataset}", *short, "training.threads=1", "tracking.mode=disabled")
    vigil("train", "recipes/demo.yaml", "--run", run, *overrides)
    # The run is finished, so the same command does nothing; another recipe is refused.
    vigil("train", "recipes/demo.yaml", "--run", run, *overrides)
    refused = vigil("train", "recipes/demo.yaml", "--run", run, *overrides, "optimizer.lr=5e-4", status=2)
    assert "optimizer.lr" in refused.stderr
    vigil("evaluate", run)
    findings = json.loads((run / "evaluation" / "test" / "metrics.json").read_text(encoding="utf-8"))
    assert {group["column"] for group in findings["by"]} == {"presence", "functionality"}
    report = (run / "evaluation" / "test" / "report.html").read_text(encoding="utf-8")
    assert "<svg" in report
    assert "https://" not in report.replace("https://www.w3.org", "")

    exported = vigil("export", run, "--to", bundle)
    assert "TorchScript" in exported.stdout
    vigil("verify", bundle)
    vigil("score", bundle, dataset, "--split", "test", "--to", scores)
    scored, predicted = (
        {row["id"]: row for row in pq.read_table(file).to_pylist()}
        for file in (scores, run / "evaluation" / "test" / "predictions.parquet")
    )
    assert scored.keys() == predicted.keys()
    names = [name for name in next(iter(predicted.values())) if name.startswith("probability.")]
    assert len(names) == 5
    assert all(abs(scored[i][name] - predicted[i][name]) < 1e-4 for i in predicted for name in names)

    altered = tmp_path / "altered"
    shutil.copytree(bundle, altered)
    data = bytearray((altered / "onnx" / "fusion.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (altered / "onnx" / "fusion.onnx").write_bytes(data)
    assert "onnx/fusion.onnx" in vigil("verify", altered, status=2).stderr
    assert "onnx/fusion.onnx" in vigil("score", altered, dataset, "--to", tmp_path / "no.parquet", status=2).stderr
    assert not (tmp_path / "no.parquet").exists()
