"""fit_recipe: what a run writes to its folder, and what it refuses."""

import importlib.metadata
import json
import logging
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vigil_data.dataset.dataset import Dataset, write
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_training.checkpoint.reader import CheckpointReader, list_checkpoints
from vigil_training.distributed.world import World
from vigil_training.runs.predict import predict_rows
from vigil_training.runs.run import differences
from vigil_training.tracking.environment import git_diff
from vigil_training.trainer.data_module import DataModule
from vigil_training.trainer.errors import TrainingFailure
from vigil_training.trainer.fit import fit_recipe


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_fit_recipe_writes_every_file_of_the_run_folder(trained):
    assert {path.name for path in trained.path.iterdir()} == {
        *(["code.diff"] if git_diff(Path.cwd()) else []),  # The tests run in a checkout with changes.
        "attempt",
        "checkpoints",
        "environment.json",
        "metrics.jsonl",
        "calibration.json",
        "plan.json",
        "resolved.yaml",
        "run_id",
        "starts.jsonl",
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


def test_fit_recipe_learns(trained):
    values = [line["validation/ap/bright"] for line in lines(trained.metrics) if "validation/ap/bright" in line]
    assert len(values) == 3
    assert values[-1] > 0.95


def test_validation_metrics_are_those_of_scikit_learn(trained):
    from sklearn.metrics import average_precision_score, roc_auc_score

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


def test_validations_score_a_sample_and_calibration_the_whole_split(make_recipe, train, tmp_path):
    from sklearn.metrics import roc_auc_score

    run = train(make_recipe(training__epochs=1, training__validation_items=20), tmp_path / "run")
    dataset = Dataset(run.recipe.data.dataset)
    validation = dataset.rows("validation")

    def scored(**changes):
        return DataModule(make_recipe(**changes), dataset.version).scored_rows.tolist()

    sample = scored(training__validation_items=20)
    assert len(sample) == 20 < len(validation)
    assert sample == sorted(sample) == scored(training__validation_items=20, seed=7)
    assert set(sample) < set(scored(training__validation_items=21)) < set(validation.tolist())
    assert scored(training__validation_items=len(validation) + 1) == scored() == validation.tolist()

    predicted = predict_rows(run, dataset, np.array(sample), checkpoint="last")
    found = [line for line in lines(run.metrics) if "validation/loss" in line][-1]
    for column, label in enumerate(("cat", "bright")):
        known = ~np.isnan(predicted.targets_NL[:, column])
        assert found[f"validation/auroc/{label}"] == pytest.approx(
            roc_auc_score(predicted.targets_NL[known, column], predicted.logits_NL[known, column])
        )
    assert f"validations score 20 of {len(validation)} items" in run.log.read_text()
    known_L = (~np.isnan(dataset.targets(["cat", "bright"], validation))).sum(axis=0)
    assert [label.known for label in run.read_calibrated().calibration.labels.values()] == known_L.tolist()


def test_validation_loaders_of_two_ranks_share_the_sample(make_recipe):
    recipe = make_recipe(training__validation_items=20)
    modules = [DataModule(recipe, 1, World(rank, 2, rank, 2)) for rank in range(2)]
    ids = Dataset(recipe.data.dataset).table(["id"], modules[0].scored_rows).column("id").to_pylist()
    assert sorted(id_ for module in modules for batch in module.val_dataloader() for id_ in batch.ids) == sorted(ids)
    whole = [id_ for module in modules for batch in module.calibration_dataloader() for id_ in batch.ids]
    assert len(whole) == len(set(whole)) == len(modules[0].validation_rows)


def test_best_checkpoint_is_of_the_best_validation(trained):
    best = CheckpointReader(trained.checkpoint("best")).manifest
    validations = {line["step"]: line["validation/macro_ap"] for line in lines(trained.metrics) if "validation/macro_ap" in line}
    assert best.value == pytest.approx(max(validations.values()))
    assert validations[best.step] == max(validations.values())


def test_fit_recipe_leaves_a_finished_run_alone(trained, make_recipe, train, caplog):
    before = {path: path.stat().st_mtime_ns for path in trained.path.rglob("*") if path != trained.log}
    train(make_recipe(), trained.path)
    assert {path: path.stat().st_mtime_ns for path in trained.path.rglob("*") if path != trained.log} == before
    assert "has finished; nothing to do" in trained.log.read_text()


def test_fit_recipe_refuses_a_run_of_another_recipe_and_names_the_keys(trained, make_recipe, train):
    with pytest.raises(UserError) as caught:
        train(make_recipe(optimizer__lr=0.5, training__epochs=4), trained.path)
    assert caught.value.lines[0].startswith(f"{trained.path}: holds a run of a different recipe")
    assert caught.value.lines[1:] == (
        "optimizer.lr: the run has 0.003, the recipe 0.5",
        "training.epochs: the run has 3, the recipe 4",
    )


def test_differences_names_keys_of_either_side():
    assert differences({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 1}, "d": [2], "e": 3}) == [
        ("a.c", 2, None),
        ("d", [1], [2]),
        ("e", None, 3),
    ]


def test_fit_recipe_refuses_a_folder_that_is_not_a_run(make_recipe, train, tmp_path):
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
    ],
)
def test_fit_recipe_finds_a_mistake_before_training_and_accepts_its_correction(changes, message, make_recipe, train, tmp_path):
    with pytest.raises(UserError, match=message):
        train(make_recipe(**changes), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert train(make_recipe(training__max_steps=1), tmp_path / "run").finished


def test_fit_recipe_stops_if_no_checkpoint_can_be_read(make_recipe, train, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError):
        train(make_recipe(data__train="trian"), run)
    (run / "checkpoints" / "step-00000010").mkdir(parents=True)
    (run / "checkpoints" / "step-00000010" / "manifest.json").write_bytes(b"not a checkpoint")
    (run / "resolved.yaml").write_text(make_recipe().model_dump_json())
    with pytest.raises(UserError, match=r"step-00000010/manifest.json.*\n.*every checkpoint is damaged"):
        train(make_recipe(), run)


def test_fit_recipe_names_the_way_out_if_every_checkpoint_is_damaged(
    make_recipe, train, trained, assert_same_run, tmp_path, monkeypatch
):
    run = tmp_path / "my run"
    with monkeypatch.context() as patch:
        patch.setattr("vigil_training.trainer.fit._calibrate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(make_recipe(), run)
    checkpoints = list_checkpoints(run / "checkpoints")
    assert len(checkpoints) >= 2
    for path in checkpoints:
        file = path / "rank-00000.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    with pytest.raises(UserError) as error:
        train(make_recipe(), run)
    *problems, advice = error.value.lines
    assert sorted(line.split(": ")[0] for line in problems) == [str(path / "rank-00000.safetensors") for path in checkpoints]
    assert "every checkpoint is damaged" in advice

    inspect, move = (shlex.split(command) for command in re.findall(r"`(.*?)`", advice))
    shown = subprocess.run([Path(sys.executable).with_name("vigil"), *inspect[1:]], capture_output=True, text=True, check=False)
    assert shown.returncode == 1
    assert all(path.name in shown.stdout and str(path) in shown.stderr for path in checkpoints)
    subprocess.run(move, check=True)
    assert_same_run(trained.path, train(make_recipe(), run).path)
    assert len(list_checkpoints(run / "checkpoints.damaged")) == len(checkpoints)


def interrupt(*_):
    raise KeyboardInterrupt


def test_fit_recipe_resumes_on_the_dataset_version_it_began_with(make_recipe, train, material, monkeypatch, tmp_path):
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


def test_fit_recipe_writes_environment_json_atomically(make_recipe, train, monkeypatch, tmp_path):
    """A kill while environment.json is written leaves the former one, by which the run resumes."""
    from vigil_data import filesystem
    from vigil_training.trainer import fit as module

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_calibrate", stop)
        patch.setattr(module.CheckpointCallback, "on_train_epoch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            train(make_recipe(), tmp_path / "run")
    environment = (tmp_path / "run" / "environment.json").read_bytes()
    sync = filesystem.sync

    def killed(path):
        if "environment" in path.name:
            raise KeyboardInterrupt
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "sync", killed)
        with pytest.raises(KeyboardInterrupt):
            train(make_recipe(), tmp_path / "run")
    assert (tmp_path / "run" / "environment.json").read_bytes() == environment
    assert train(make_recipe(), tmp_path / "run").finished
    assert "resuming" in (tmp_path / "run" / "train.log").read_text()
    assert not list((tmp_path / "run").glob(".*"))


def test_quarantine_continues_after_a_line_that_a_kill_cut_off(tmp_path):
    from vigil_data.loading.packing import Refusal
    from vigil_training.trainer.quarantine import Quarantine

    path = tmp_path / "quarantine.jsonl"
    Quarantine(path, 10, 1.0).add([Refusal("a", "image", 0, "cut")])
    line = path.read_text()
    path.write_text(line + '{"id": "b", "moda')
    resumed = Quarantine(path, 10, 1.0)
    resumed.add([Refusal("a", "image", 0, "cut"), Refusal("b", "image", 0, "cut")])
    assert [entry["id"] for entry in lines(path)] == ["a", "b"]


def test_training_progress_reports_steps_items_and_loss(make_recipe, train, monkeypatch, tmp_path):
    from vigil_data.progress import Progress

    reported = []
    report = Progress.__call__

    def record(self, task, done=0, total=None, detail="", unit=None):
        reported.append((task, done, total, detail))
        report(self, task, done, total, detail, unit)

    monkeypatch.setattr(Progress, "__call__", record)
    train(make_recipe(training__epochs=1, training__accumulate=2), tmp_path / "run")
    steps = [(done, total, detail) for task, done, total, detail in reported if task == "training"]
    assert [done for done, *_ in steps] == list(range(1, steps[0][1] + 1))
    assert all(re.fullmatch(r"loss 0\.\d+, [\d.e+]+ items/s, waiting for data \d+%", detail) for *_, detail in steps)
    validation = [(task, done, total) for task, done, total, _ in reported if task.startswith("validation")]
    assert validation[-1] == (f"validation after step {steps[-1][0]}", validation[-1][2], validation[-1][2])
    predicting = [(done, total) for task, done, total, _ in reported if task == "predicting"]
    assert predicting[-1] == (40, 40)


@pytest.fixture
def cut_pictures(material, tmp_path):
    """A dataset in which each tenth item's picture is truncated after its header, and the ids of those that a run reads."""
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
    read = {"train": lambda item: any(value is not None for value in item.targets.values()), "validation": lambda item: True}
    ids = {
        item.id
        for n, item in enumerate(items)
        if n % 10 == 0 and item.image and (reads := read.get(item.columns["split"])) and reads(item)
    }
    return tmp_path / "dataset", ids


def test_quarantine_lists_undecodable_items_and_stops_the_run_above_the_limit(cut_pictures, make_recipe, train, tmp_path):
    dataset, cut = cut_pictures
    run = train(make_recipe(data__dataset=str(dataset), data__quarantine_limit=0.2, training__epochs=1), tmp_path / "run")
    refused = lines(run.quarantine)
    assert {line["id"] for line in refused} == cut
    assert len(refused) == len({line["id"] for line in refused}) > 3
    assert all(line["modality"] == "image" and line["reason"] for line in refused)
    with pytest.raises(
        TrainingFailure, match=r"items cannot be decoded, more than data.quarantine_limit 0.01; the last is item .*"
    ):
        train(make_recipe(data__dataset=str(dataset)), tmp_path / "strict")


def test_train_step_skips_a_gradient_that_is_not_finite(make_recipe, train, saved, monkeypatch, tmp_path):
    from vigil_modeling.losses import MaskedLoss

    forward, calls = MaskedLoss.forward, []

    def spoilt(self, logits, *rest):
        calls.append(logits.requires_grad)
        return forward(self, logits, *rest) * (float("nan") if sum(calls) in bad and logits.requires_grad else 1.0)

    monkeypatch.setattr(MaskedLoss, "forward", spoilt)
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
    "changes",
    [
        {"training__precision": "bf16"},
        {"training__clip": None},
        {"model__encoders__text__frozen": True},
        {"loss": {"kind": "asymmetric", "class_balance": 0.99, "logit_adjustment": 1.0}},
        {"loss": {"kind": "gce", "unlabeled": {"cat": 0.3}}},
        {"model__encoders__text__lora": {"rank": 2}},
        {"model__ordinal_heads": ["words"]},
        {"model__hierarchy": True, "taxonomy__heads__looks__labels__bright": {"parent": "cat"}},
    ],
)
def test_fit_recipe_trains_with_other_settings(changes, make_recipe, train, tmp_path):
    run = train(make_recipe(training__epochs=1, **changes), tmp_path / "run")
    weights = CheckpointReader(run.checkpoint("last")).weights()
    assert all(value.dtype != torch.bfloat16 and value.isfinite().all() for value in weights.values())
    if "model__encoders__text__frozen" in changes:
        from vigil_modeling.safety_model import build_model

        torch.manual_seed(run.recipe.seed)
        initial = build_model(run.recipe.model, run.recipe.inputs, run.recipe.taxonomy).state_dict()
        moved = {name for name, value in initial.items() if not torch.equal(weights[name], value)}
        assert moved
        assert not any(name.startswith("encoders.text") for name in moved)


def test_log_to_run_restores_logging(trained, make_recipe, train):
    logger = logging.getLogger("vigil")
    before = (logger.level, logger.propagate, list(logger.handlers))
    fit_recipe(make_recipe(), "", trained.path)
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("langage", "has no column langage (loss.group_dro.column); it has "),
        ("split", "loss.group_dro.column: split has 1 value in the "),
        ("id_", "has no column id_"),
    ],
)
def test_fit_recipe_refuses_a_column_without_groups(column, message, make_recipe, train, tmp_path):
    with pytest.raises(UserError, match=re.escape(message)):
        train(make_recipe(loss={"kind": "bce", "group_dro": {"column": column}}), tmp_path / "run")
