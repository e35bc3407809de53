"""`vigil export` and `vigil score` of a guard's run: the trained guard's decisions, as onnx alone unless asked for more."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from vigil.workflows.export_run import export_run
from vigil_data.errors import UserError
from vigil_serving.scoring.score import score_dataset


def test_export_of_a_guard_run_scores_the_dataset(trained_guard, material: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="formats: torchscript: a guard is exported as onnx, fp16 and int8"):
        export_run(trained_guard, tmp_path / "bundle", formats=["torchscript"])
    bundle = export_run(trained_guard, tmp_path / "bundle", examples=4)
    assert set(bundle.graphs) == {"text", "image", "fusion", "decisions"}
    assert all(parity.flips == 0 and parity.real_items == 4 for parity in bundle.metadata.parity)
    assert bundle.prompt.pieces.order == trained_guard.recipe.model.prompt.order
    summary = score_dataset(bundle.path, material / "dataset", tmp_path / "out.parquet", split="test", threads=1)
    assert (summary.items, summary.errors, summary.not_evaluated) == (40, 0, ())


def test_recipe_of_a_guard_refuses_formats_that_it_lacks(make_guard_recipe) -> None:
    with pytest.raises(ValidationError, match=r"export\.formats: torchscript, bf16: a guard is exported as onnx, fp16 and int8"):
        make_guard_recipe(export={"formats": ["torchscript", "fp16", "bf16"]})
    assert make_guard_recipe(export={"formats": ["int8"]}).export.formats == ("onnx", "int8")
