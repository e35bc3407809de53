"""Resuming: a run that was stopped, by whatever means, ends with bitwise the weights of one that was not."""

import json
import signal
from pathlib import Path

import driven_training
import pytest
import torch

from vigil_data.errors import Failure
from vigil_training.checkpoint.reader import last_checkpoint, list_checkpoints, read_manifest
from vigil_training.checkpoint.rng_state import get_rng_state, set_rng_state
from vigil_training.distributed.preemption import Preempted
from vigil_training.trainer.callbacks import CheckpointCallback, EarlyStopping, MetricsCallback
from vigil_training.trainer.lightning_internals import ends_optimizer_step


class Stop(Exception):
    """Stops a run in these tests."""


@pytest.fixture(scope="module")
def undisturbed(trained):
    return trained.path


def start(recipe: Path, run: Path, **options) -> int:
    """Train in another process; gives its exit status, negative for a signal."""
    return driven_training.train(recipe, run, statuses=(0, 85, -signal.SIGKILL), timeout=180, **options)[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_fit_recipe_resumes_a_killed_process(workers, make_recipe, undisturbed, assert_same_run, tmp_path):
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(make_recipe(data__workers=workers).model_dump_json())
    # It returns only when the workers have ended too: they hold the other end of its standard error.
    assert start(recipe, run, kill={"step": 16, "signal": "SIGKILL"}) == -signal.SIGKILL
    assert read_manifest(last_checkpoint(run / "checkpoints")).step in (12, 14)  # The last may not have been whole yet.
    assert start(recipe, run) == 0
    assert_same_run(undisturbed, run)


@pytest.mark.parametrize(("name", "when"), [("SIGTERM", "step"), ("SIGUSR1", "step"), ("SIGUSR1", "validation")])
def test_preemption_saves_a_checkpoint_and_exits_with_85(name, when, make_recipe, undisturbed, assert_same_run, tmp_path):
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(make_recipe(checkpoint__every_steps=None).model_dump_json())
    lines = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    epoch = next(line["step"] for line in lines if "validation/loss" in line)
    step = 5 if when == "step" else epoch
    assert start(recipe, run, kill={"step": step, "signal": name, "when": when}) == 85
    # The step before a validation is saved, so that a validation that is interrupted costs one step.
    assert read_manifest(last_checkpoint(run / "checkpoints")).step == (step if when == "step" else epoch - 1)
    assert not (run / "failure.json").exists()
    assert start(recipe, run) == 0
    assert_weights(undisturbed, run)


def assert_weights(left: Path, right: Path) -> None:
    from vigil_training.checkpoint.reader import CheckpointReader

    expected, found = (CheckpointReader(last_checkpoint(run / "checkpoints")).weights() for run in (left, right))
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "training__accumulate": 3,
            "checkpoint__every_steps": 1,
            "training__modality_dropout": {"text": 0.3, "image": 0.3},
            "model__segment_roles": True,
            "model__time_position": {},
            "training__ema": {"decay": 0.9, "every_steps": 2, "start_step": 3},
            "data__augmentation": {"text": {"perturb": {}}, "image": {"rand_augment": {}, "jpeg": {}}},
            "loss": {"kind": "bce", "group_dro": {"column": "language", "step_size": 0.5}},
            "model__encoders__text__unfreeze": {"unit": "epochs", "start": 0},
            "model__encoders__image__unfreeze": {"unit": "steps", "start": 3, "every": 2},
            "model__encoders__image__frozen": 1,
            "model__encoders__image__frozen_dtype": "bf16",
            "model__auxiliary_heads": {"ogm_ge": {}},
        },
        {"checkpoint__every_steps": None, "checkpoint__background": False, "training__precision": "bf16"},
    ],
)
def test_fit_recipe_resumes_from_any_step(changes, make_recipe, train, assert_same_run, monkeypatch, tmp_path):
    recipe = make_recipe(training__epochs=2, **changes)
    train(recipe, tmp_path / "undisturbed")
    steps = read_manifest(last_checkpoint(tmp_path / "undisturbed" / "checkpoints")).step
    record = MetricsCallback.on_train_batch_end
    for stop in range(1, steps + 1):

        def on_train_batch_end(self, trainer, *rest, stop=stop):
            record(self, trainer, *rest)
            if trainer.global_step == stop and ends_optimizer_step(trainer):
                raise Stop

        monkeypatch.setattr(MetricsCallback, "on_train_batch_end", on_train_batch_end)
        if list_checkpoints(tmp_path / "run" / "checkpoints") and stop % 4:
            continue  # Resuming at every fourth step is enough where it was stopped before.
        with pytest.raises(Stop):
            train(recipe, tmp_path / "run")
    monkeypatch.setattr(MetricsCallback, "on_train_batch_end", record)
    train(recipe, tmp_path / "run")
    assert_same_run(tmp_path / "undisturbed", tmp_path / "run")


@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end", "on_train_end"])
def test_fit_recipe_resumes_from_the_end_of_an_epoch(
    hook, make_recipe, train, undisturbed, assert_same_run, monkeypatch, tmp_path
):
    callback = EarlyStopping if hook == "on_validation_end" else CheckpointCallback
    original = getattr(callback, hook)
    calls = []

    def stopping(self, trainer, module):
        original(self, trainer, module)
        calls.append(trainer.current_epoch)
        if len(calls) == (1 if hook == "on_train_end" else 2):
            raise Stop

    monkeypatch.setattr(callback, hook, stopping)
    with pytest.raises(Stop):
        train(make_recipe(), tmp_path / "run")
    monkeypatch.setattr(callback, hook, original)
    train(make_recipe(), tmp_path / "run")
    assert_same_run(undisturbed, tmp_path / "run")


def test_fit_recipe_only_calibrates_after_a_stop_during_calibration(
    make_recipe, train, undisturbed, assert_same_run, monkeypatch, tmp_path
):
    from vigil_training.trainer import fit as module

    until_asked = module._until_asked

    def asked(batches, session):
        session.preemption.asked = "SIGTERM"
        return until_asked(batches, session)

    monkeypatch.setattr(module, "_until_asked", asked)
    with pytest.raises(Preempted, match="during calibration"):
        train(make_recipe(), tmp_path / "run")
    monkeypatch.setattr(module, "_until_asked", until_asked)
    train(make_recipe(), tmp_path / "run")
    assert (tmp_path / "run" / "train.log").read_text().count("from the beginning") == 1
    assert_same_run(undisturbed, tmp_path / "run")


@pytest.mark.parametrize("damage", ["truncate", "flip", "absent"])
def test_fit_recipe_resumes_from_the_checkpoint_before_a_damaged_one(
    damage, make_recipe, train, undisturbed, assert_same_run, monkeypatch, tmp_path
):
    def stopping(self, trainer, module):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(EarlyStopping, "on_validation_end", stopping)
        with pytest.raises(Stop):
            train(make_recipe(), tmp_path / "run")
    newest = last_checkpoint(tmp_path / "run" / "checkpoints") / "rank-00000.safetensors"
    content = bytearray(newest.read_bytes())
    if damage == "absent":
        newest.unlink()
    else:
        content[len(content) // 2] ^= 1
        newest.write_bytes(content[:-100] if damage == "truncate" else content)
    train(make_recipe(), tmp_path / "run")
    log = (tmp_path / "run" / "train.log").read_text()
    assert f"damaged checkpoint: {newest}" in log
    assert "resuming" in log
    assert_same_run(undisturbed, tmp_path / "run")


def test_fit_recipe_resumes_after_a_full_disk(make_recipe, train, undisturbed, assert_same_run, small_disk, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to(small_disk)
    (run / "resolved.yaml").write_text(make_recipe().model_dump_json())
    filler = small_disk / ".filler"
    filler.write_bytes(bytes(1_300_000))
    with pytest.raises(Failure, match="cannot be written: No space left on device; free some space"):
        train(make_recipe(checkpoint__keep_last=2), run)
    assert json.loads((run / "failure.json").read_text())["status"] == 1
    assert list_checkpoints(run / "checkpoints")
    filler.unlink()
    train(make_recipe(), run)
    assert "resuming" in (run / "train.log").read_text()
    assert_same_run(undisturbed, run)


def test_checkpoint_writer_of_a_superseded_start_writes_nothing(make_recipe, train, monkeypatch, tmp_path):
    record = MetricsCallback.on_train_batch_end

    def taking_over(self, trainer, *rest):
        record(self, trainer, *rest)
        if trainer.global_step == 5:
            (tmp_path / "run" / "attempt").write_text("another")

    monkeypatch.setattr(MetricsCallback, "on_train_batch_end", taking_over)
    with pytest.raises(Failure, match=r"another start of this run \(another\) has taken over"):
        train(make_recipe(checkpoint__background=False), tmp_path / "run")
    assert read_manifest(last_checkpoint(tmp_path / "run" / "checkpoints")).step == 4


def test_early_stopping_resumes_patience_and_max_steps(make_recipe, train, assert_same_run, monkeypatch, tmp_path):
    recipe = make_recipe(training__epochs=9, training__patience=1, training__max_steps=40, optimizer__lr=0.05)
    train(recipe, tmp_path / "undisturbed")
    saved = CheckpointCallback.on_train_epoch_end

    def stopping(self, trainer, module):
        saved(self, trainer, module)
        raise Stop

    monkeypatch.setattr(CheckpointCallback, "on_train_epoch_end", stopping)
    for _ in range(9):
        try:
            train(recipe, tmp_path / "run")
            break
        except Stop:
            continue
    assert_same_run(tmp_path / "undisturbed", tmp_path / "run")
    assert read_manifest(last_checkpoint(tmp_path / "run" / "checkpoints")).step <= 40


def test_rng_state_covers_python_numpy_and_torch():
    import random

    import numpy as np

    def draw():
        return random.random(), np.random.normal(), float(torch.rand(()))  # noqa: NPY002

    np.random.normal()  # noqa: NPY002 (leaves half a pair behind, which is part of the state)
    state = get_rng_state()
    expected = draw()
    assert draw() != expected
    set_rng_state(state)
    assert draw() == expected
