"""The run folder, its model, and predictions."""

import re

import numpy as np
import pytest
import torch

from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import UserError
from vigil_data.loading.loader import Reader
from vigil_training.checkpoint import reader as reader_module
from vigil_training.runs.predict import outputs_to_table, predict_batches, predict_rows
from vigil_training.runs.run import Run, open_run


@pytest.fixture(scope="module")
def dataset(material):
    return Dataset(material / "dataset")


def test_run_has_its_recipe(trained, make_recipe):
    assert trained.recipe == make_recipe()


def test_run_refuses_other_folders(tmp_path):
    with pytest.raises(UserError, match="no such run folder"):
        Run(tmp_path / "absent")
    with pytest.raises(UserError, match=r"not a run: it has no resolved\.yaml"):
        Run(tmp_path)


def test_open_run_gives_a_folder_an_id_that_stays(make_recipe, tmp_path):
    recipe = make_recipe()
    ids = {open_run(recipe, recipe.model_dump_json(), tmp_path / name).run_id for name in ("one", "one", "two")}
    assert len(ids) == 2
    assert all(re.fullmatch("[0-9a-f]{8}", each) for each in ids)
    (tmp_path / "one" / "run_id").unlink()
    with pytest.raises(UserError, match=r"one/run_id: no such file.*start the run again with `vigil train`"):
        _ = Run(tmp_path / "one").run_id


def test_read_thresholds_refuses_an_unfinished_run(tmp_path):
    (tmp_path / "resolved.yaml").write_text("")
    with pytest.raises(UserError, match="has not finished"):
        Run(tmp_path).read_thresholds()


@pytest.mark.parametrize("name", ["best", "last"])
def test_model_has_the_weights_of_the_checkpoint(name, trained):
    model = trained.model(name)
    saved = reader_module.CheckpointReader(trained.checkpoint(name)).weights()
    assert not model.training
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())


def test_model_refuses_a_missing_checkpoint_and_another_model(trained, make_recipe, train, tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        trained.model("worst")
    other = train(make_recipe(model__width=8, training__max_steps=1), tmp_path / "other")
    with pytest.raises(UserError, match=r"weights of another model: \d+ tensors do not match"):
        trained.model(str(other.checkpoint("last")))


def test_predict_rows_keeps_row_order_and_equals_one_item_at_a_time(trained, dataset):
    rows = dataset.rows("test")[::-1]
    table = outputs_to_table(predict_rows(trained, dataset, rows), trained, dataset, rows)
    assert table.column("id").to_pylist() == [item.id for item in dataset.take(rows)]
    assert table.column_names == [
        "id",
        "target.cat",
        "probability.cat",
        "target.bright",
        "probability.bright",
        "presence",
        "language",
    ]
    reader = Reader(dataset.path, dataset.version, trained.recipe.inputs, ("cat", "bright"))
    model = trained.model()
    from vigil_data.loading.loader import Request

    for place in (0, 7, 23):
        item = dataset.take(rows[[place]])[0]
        with torch.no_grad():
            raw_NL = model(reader[Request(rows[[place]])]).logits_NL.double().sigmoid().numpy()
        alone = trained.read_calibrated().calibration.apply(raw_NL)[0]
        found = [table.column(f"probability.{label}")[place].as_py() for label in ("cat", "bright")]
        np.testing.assert_allclose(found, alone, atol=1e-5)
        assert table.column("target.cat")[place].as_py() == item.targets.get("cat")
        expected = "+".join(m for m in ("text", "image") if getattr(item, m))
        assert table.column("presence")[place].as_py() == expected
        assert table.column("language")[place].as_py() == item.columns["language"]


def test_outputs_to_table_has_null_for_unknown_targets(trained, dataset):
    rows = dataset.rows("test")
    table = outputs_to_table(predict_rows(trained, dataset, rows), trained, dataset, rows)
    unknown = np.isnan(dataset.targets(["cat"], dataset.rows("test"))[:, 0])
    assert table.column("target.cat").null_count == unknown.sum() > 0


def test_predict_rows_can_hide_a_modality(trained, dataset):
    rows = dataset.rows("test")
    whole, text = predict_rows(trained, dataset, rows), predict_rows(trained, dataset, rows, only=["text"])
    assert set(text.presence) == {"text", "none"}
    assert set(whole.presence) == {"text", "image", "text+image"}
    same = np.array([p == "text" for p in whole.presence])
    np.testing.assert_allclose(whole.logits_NL[same], text.logits_NL[same], atol=1e-5)
    assert not np.allclose(whole.logits_NL[~same], text.logits_NL[~same], atol=1e-3)
    with pytest.raises(UserError, match="the model has no audio; it takes text, image"):
        predict_rows(trained, dataset, rows, only=["audio"])


def test_predict_batches_restores_the_mode_of_the_model(trained):
    model = trained.model().train()
    empty = predict_batches(model, [])
    assert model.training
    assert empty.ids == []
