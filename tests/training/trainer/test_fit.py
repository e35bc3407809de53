"""What a run leaves in its folder, and what it refuses."""

import importlib.metadata
import json
import logging

import numpy as np
import pytest
import torch

from vigil_data.dataset.dataset import write
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_training.checkpoint.reader import CheckpointReader, list_checkpoints
from vigil_training.runs.run import differences
from vigil_training.trainer.fit import fit_recipe
from vigil_training.trainer.errors import TrainingFailure


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_everything_in_its_folder(trained):
    assert {path.name for path in trained.path.iterdir()} == {
        "attempt",
        "checkpoints",
        "environment.json",
        "metrics.jsonl",
        "calibration.json",
        "resolved.yaml",
        "thresholds.json",
        "train.log",
    }
    assert list_checkpoints(trained.checkpoints) == sorted(trained.checkpoints.iterdir())
    assert {trained.checkpoint("last"), trained.checkpoint("best")} <= set(list_checkpoints(trained.checkpoints))
    facts = trained.read_environment()
    assert facts["libraries"]["torch"] == importlib.metadata.version("torch")
    assert facts["dataset"]["version"] == 1
    assert trained.read_thresholds().keys() == {"cat", "bright"}
    assert "12 have no known target and are left out" in trained.log.read_text()


def test_it_learns(trained):
    values = [line["validation/ap/bright"] for line in lines(trained.metrics) if "validation/ap/bright" in line]
    assert len(values) == 3
    assert values[-1] > 0.95


def test_the_numbers_of_validation_are_those_of_scikit_learn(trained):
    from sklearn.metrics import average_precision_score, roc_auc_score

    from vigil_data.dataset.dataset import Dataset
    from vigil_training.runs.predict import predict_rows

    dataset = Dataset(trained.recipe.data.dataset)
    predicted = predict_rows(trained, dataset, dataset.rows("validation"), checkpoint="last")
    found = [line for line in lines(trained.metrics) if "validation/loss" in line][-1]
    losses = []
    for column, label in enumerate(("cat", "bright")):
        known = ~np.isnan(predicted.targets_NL[:, column])
        targets, logits = predicted.targets_NL[known, column], predicted.logits_NL[known, column].astype(np.float64)
        assert found[f"validation/ap/{label}"] == pytest.approx(average_precision_score(targets, logits))
        assert found[f"validation/auroc/{label}"] == pytest.approx(roc_auc_score(targets, logits))
        losses += [np.log1p(np.exp(-logit if target else logit)) for target, logit in zip(targets, logits, strict=True)]
    assert found["validation/macro_ap"] == pytest.approx((found["validation/ap/cat"] + found["validation/ap/bright"]) / 2)
    assert found["validation/loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_best_checkpoint_is_of_the_best_validation(trained):
    best = CheckpointReader(trained.checkpoint("best")).manifest
    validations = {line["step"]: line["validation/macro_ap"] for line in lines(trained.metrics) if "validation/macro_ap" in line}
    assert best.value == pytest.approx(max(validations.values()))
    assert validations[best.step] == max(validations.values())


def test_a_finished_run_is_left_alone(trained, make_recipe, train, caplog):
    before = {path: path.stat().st_mtime_ns for path in trained.path.rglob("*") if path != trained.log}
    train(make_recipe(), trained.path)
    assert {path: path.stat().st_mtime_ns for path in trained.path.rglob("*") if path != trained.log} == before
    assert "has finished; nothing to do" in trained.log.read_text()


def test_another_recipe_is_refused_with_the_keys_that_differ(trained, make_recipe, train):
    with pytest.raises(UserError) as caught:
        train(make_recipe(optimizer__lr=0.5, training__epochs=4), trained.path)
    assert caught.value.lines[0].startswith(f"{trained.path}: holds a run of a different recipe")
    assert caught.value.lines[1:] == (
        "optimizer.lr: the run has 0.003, the recipe 0.5",
        "training.epochs: the run has 3, the recipe 4",
    )


def test_differences_name_keys_of_either_side():
    assert differences({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 1}, "d": [2], "e": 3}) == [
        ("a.c", 2, None),
        ("d", [1], [2]),
        ("e", None, 3),
    ]


def test_a_folder_of_something_else_is_refused(make_recipe, train, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not a run and not an empty folder"):
        train(make_recipe(), tmp_path)
    with pytest.raises(UserError, match="not a run and not an empty folder"):
        train(make_recipe(), tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__dataset": "/nowhere"}, "/nowhere is not a dataset"),
        ({"data__train": "trian"}, "has no split trian"),
        ({"data__where": "language = 'fr'"}, "has no item with a known target of cat, bright"),
        ({"data__version": 9}, "has no version 9"),
        (
            {"training__monitor": "validation/f1"},
            "training.monitor: validation/f1 is not measured; it can be one of validation/macro_ap",
        ),
    ],
)
def test_a_mistake_is_found_before_training_and_can_be_mended_in_place(changes, message, make_recipe, train, tmp_path):
    with pytest.raises(UserError, match=message):
        train(make_recipe(**changes), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert train(make_recipe(training__max_steps=1), tmp_path / "run").finished


def test_a_checkpoint_that_cannot_be_read_stops_the_run(make_recipe, train, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError):
        train(make_recipe(data__train="trian"), run)
    (run / "checkpoints" / "step-00000010").mkdir(parents=True)
    (run / "checkpoints" / "step-00000010" / "manifest.json").write_bytes(b"not a checkpoint")
    (run / "resolved.yaml").write_text(make_recipe().model_dump_json())
    with pytest.raises(UserError, match=r"step-00000010/manifest.json.*\n.*every checkpoint is damaged"):
        train(make_recipe(), run)


def test_a_resumed_run_reads_the_version_it_began_with(make_recipe, train, material, monkeypatch, tmp_path):
    import shutil

    from vigil_training.trainer import fit as module

    dataset = tmp_path / "dataset"
    shutil.copytree(material / "dataset", dataset)
    recipe = make_recipe(data__dataset=str(dataset), training__epochs=1)
    choose = module._calibrate

    def stop(*_):
        raise TrainingFailure("stopped")

    monkeypatch.setattr(module, "_calibrate", stop)
    with pytest.raises(TrainingFailure):
        train(recipe, tmp_path / "run")
    monkeypatch.setattr(module, "_calibrate", choose)
    assert write(dataset, [Item("new", ("cat",), targets={"cat": 1.0}, columns={"split": "validation"})], append=True).version > 1
    run = train(recipe, tmp_path / "run")
    assert run.read_environment()["dataset"]["version"] == 1


@pytest.fixture
def cut_pictures(material, tmp_path):
    """A dataset of which every tenth picture is cut off behind its header."""
    from vigil_data.dataset.dataset import Dataset

    original = Dataset(material / "dataset")
    items = original.take(original.rows())
    cut = [
        Item(
            item.id,
            item.text,
            tuple(picture[:200] for picture in item.image) if n % 10 == 0 else item.image,
            (),
            item.targets,
            item.columns,
        )
        for n, item in enumerate(items)
    ]
    write(tmp_path / "dataset", cut)
    return tmp_path / "dataset", {item.id for n, item in enumerate(items) if n % 10 == 0 and item.image}


def test_undecodable_items_are_counted_and_stop_the_run_beyond_the_limit(cut_pictures, make_recipe, train, tmp_path):
    dataset, cut = cut_pictures
    run = train(make_recipe(data__dataset=str(dataset), data__quarantine_limit=0.2, training__epochs=1), tmp_path / "run")
    refused = lines(run.quarantine)
    assert {line["id"] for line in refused} == {id_ for id_ in cut if not id_.startswith("test")} & {
        line["id"] for line in refused
    }
    assert len(refused) == len({line["id"] for line in refused}) > 3
    assert all(line["modality"] == "image" and line["reason"] for line in refused)
    with pytest.raises(
        TrainingFailure, match=r"items cannot be decoded, more than data.quarantine_limit 0.01; the last: item .*"
    ):
        train(make_recipe(data__dataset=str(dataset)), tmp_path / "strict")


def test_a_gradient_that_is_not_finite_is_left_out(make_recipe, train, saved, monkeypatch, tmp_path):
    from vigil_modeling.loss import MaskedBCE

    forward, calls = MaskedBCE.forward, []

    def spoilt(self, logits, targets):
        calls.append(logits.requires_grad)
        return forward(self, logits, targets) * (float("nan") if sum(calls) in bad and logits.requires_grad else 1.0)

    monkeypatch.setattr(MaskedBCE, "forward", spoilt)
    bad = {4}
    run = train(make_recipe(training__epochs=1, checkpoint__every_steps=1, checkpoint__keep_last=99), tmp_path / "run")
    assert "step 4: the gradient is not finite, so the step is skipped; its items: train-" in run.log.read_text()
    before, after, next_ = (saved(run.checkpoints / f"step-{step:08d}") for step in (3, 4, 5))
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert any(not torch.equal(after[key], next_[key]) for key in after)

    calls.clear()
    bad = range(3, 99)
    with pytest.raises(TrainingFailure, match=r"3 steps had a gradient that is not finite, more than training\.max_skipped 2;"):
        train(make_recipe(training__max_skipped=2), tmp_path / "stopped")
    facts = json.loads((tmp_path / "stopped" / "failure.json").read_text())
    assert facts["status"] == 1
    assert "its items: train-" in facts["lines"][0]


@pytest.mark.parametrize(
    "changes", [{"training__precision": "bf16"}, {"training__clip": None}, {"model__encoders__text__frozen": True}]
)
def test_it_trains_in_other_ways(changes, make_recipe, train, tmp_path):
    run = train(make_recipe(training__epochs=1, **changes), tmp_path / "run")
    weights = CheckpointReader(run.checkpoint("last")).weights()
    assert all(value.dtype != torch.bfloat16 and value.isfinite().all() for value in weights.values())
    if "model__encoders__text__frozen" in changes:
        from vigil_training.runs.assemble import assemble

        torch.manual_seed(run.recipe.seed)
        initial = assemble(run.recipe).state_dict()
        moved = {name for name, value in initial.items() if not torch.equal(weights[name], value)}
        assert moved
        assert not any(name.startswith("encoders.text") for name in moved)


def test_training_leaves_logging_as_it_was(trained, make_recipe, train):
    logger = logging.getLogger("vigil")
    before = (logger.level, logger.propagate, list(logger.handlers))
    fit_recipe(make_recipe(), "", trained.path)
    assert (logger.level, logger.propagate, list(logger.handlers)) == before
