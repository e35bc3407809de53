"""A run that was stopped and started again ends with bitwise the weights of one that was not, whatever the number of workers."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vigil_training.checkpoint import Checkpoints, random_state, read, set_random_state
from vigil_training.tracking import Recorder

DRIVE = Path(__file__).with_name("drive.py")


class Stop(Exception):
    """What stops a run in these tests."""


def assert_same_run(left: Path, right: Path) -> None:
    for name in ("last", "best"):
        expected, found = (read(run / "checkpoints" / f"{name}.ckpt")["state_dict"] for run in (left, right))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert (left / "metrics.jsonl").read_text() == (right / "metrics.jsonl").read_text()
    assert (left / "thresholds.json").read_text() == (right / "thresholds.json").read_text()


@pytest.fixture(scope="module")
def undisturbed(trained):
    return trained.path


def start(recipe: Path, run: Path, *when: str) -> int:
    """Run the driver as a process; gives its exit status, negative for a signal."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, DRIVE, recipe, run, *when]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_process_is_resumed_by_the_same_command(workers, make_recipe, undisturbed, tmp_path):
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(make_recipe(data__workers=workers).model_dump_json())
    # It returns only when the workers have ended too: they hold the other end of its standard error.
    assert start(recipe, run, "16") == -signal.SIGKILL
    assert read(run / "checkpoints" / "last.ckpt")["global_step"] == 14
    assert start(recipe, run) == 0
    assert_same_run(undisturbed, run)


@pytest.mark.prove
@pytest.mark.parametrize("workers", [0, 2])
def test_kills_at_any_moment(workers, make_recipe, train, proofs, tmp_path):
    """`vigil train`, killed again and again at moments that nobody chose, ends where an undisturbed run does."""
    recipe = make_recipe(training__epochs=24, data__workers=workers)
    train(recipe, tmp_path / "undisturbed")
    (tmp_path / "recipe.yaml").write_text(recipe.model_dump_json())
    run, moments = tmp_path / "run", random.Random(workers)
    command = [Path(sys.executable).with_name("vigil"), "train", tmp_path / "recipe.yaml", "--run", run]
    last, steps, needed = run / "checkpoints" / "last.ckpt", [], proofs(1, 12)
    while len(steps) < needed:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            before = changed(last)
            while process.poll() is None and changed(last) == before:
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.6))
            process.kill()
        if process.returncode == -signal.SIGKILL:
            steps.append(read(last)["global_step"])
        else:
            # It ended before the blow: what it left is right, and the next kills are another run's.
            assert process.returncode == 0
            assert_same_run(tmp_path / "undisturbed", run)
            shutil.rmtree(run)
    subprocess.run(command, check=True, capture_output=True)
    assert_same_run(tmp_path / "undisturbed", run)
    print(f"workers {workers}: {len(steps)} kills, last checkpoints at steps {steps}; weights, metrics and thresholds equal")


def changed(path: Path) -> int:
    """When a file was last written, in nanoseconds; 0 if it is not there."""
    return path.stat().st_mtime_ns if path.is_file() else 0


@pytest.mark.parametrize(
    "changes", [{}, {"training__accumulate": 3, "checkpoint__every_steps": 1}, {"checkpoint__every_steps": None}]
)
def test_a_run_may_be_stopped_at_any_step(changes, make_recipe, train, monkeypatch, tmp_path):
    recipe = make_recipe(training__epochs=2, **changes)
    train(recipe, tmp_path / "undisturbed")
    steps = read(tmp_path / "undisturbed" / "checkpoints" / "last.ckpt")["global_step"]
    record = Recorder.on_train_batch_end
    for stop in range(1, steps + 1):

        def on_train_batch_end(self, trainer, *rest, stop=stop):
            record(self, trainer, *rest)
            if trainer.global_step == stop and not trainer.fit_loop._should_accumulate():
                raise Stop

        monkeypatch.setattr(Recorder, "on_train_batch_end", on_train_batch_end)
        if (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file() and stop % 4:
            continue  # Resuming at every fourth step is enough where it was stopped before.
        with pytest.raises(Stop):
            train(recipe, tmp_path / "run")
    monkeypatch.setattr(Recorder, "on_train_batch_end", record)
    train(recipe, tmp_path / "run")
    assert_same_run(tmp_path / "undisturbed", tmp_path / "run")


@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end", "on_train_end"])
def test_a_run_may_be_stopped_where_an_epoch_ends(hook, make_recipe, train, undisturbed, monkeypatch, tmp_path):
    original = getattr(Checkpoints, hook)
    calls = []

    def stopping(self, trainer, module):
        original(self, trainer, module)
        calls.append(trainer.current_epoch)
        if len(calls) == (1 if hook == "on_train_end" else 2):
            raise Stop

    monkeypatch.setattr(Checkpoints, hook, stopping)
    with pytest.raises(Stop):
        train(make_recipe(), tmp_path / "run")
    monkeypatch.setattr(Checkpoints, hook, original)
    train(make_recipe(), tmp_path / "run")
    assert_same_run(undisturbed, tmp_path / "run")


def test_a_run_may_be_stopped_while_a_checkpoint_is_written(make_recipe, train, undisturbed, monkeypatch, tmp_path):
    save = torch.save

    def half(value, file):
        file.write(b"PK half a checkpoint")
        raise Stop

    def second(value, file):
        save(value, file)
        monkeypatch.setattr(torch, "save", half)

    monkeypatch.setattr(torch, "save", second)
    with pytest.raises(Stop):
        train(make_recipe(), tmp_path / "run")
    monkeypatch.setattr(torch, "save", save)
    assert read(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 2
    train(make_recipe(), tmp_path / "run")
    assert_same_run(undisturbed, tmp_path / "run")


def test_early_stopping_and_a_limit_of_steps_are_resumed(make_recipe, train, monkeypatch, tmp_path):
    recipe = make_recipe(training__epochs=9, training__patience=1, training__max_steps=40, optimizer__lr=0.05)
    train(recipe, tmp_path / "undisturbed")
    saved = Checkpoints.on_train_epoch_end

    def stopping(self, trainer, module):
        saved(self, trainer, module)
        raise Stop

    monkeypatch.setattr(Checkpoints, "on_train_epoch_end", stopping)
    for _ in range(9):
        try:
            train(recipe, tmp_path / "run")
            break
        except Stop:
            continue
    assert_same_run(tmp_path / "undisturbed", tmp_path / "run")
    assert read(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] <= 40


def test_the_random_state_is_all_of_it():
    import random

    import numpy as np

    def draw():
        return random.random(), np.random.normal(), float(torch.rand(()))  # noqa: NPY002

    np.random.normal()  # noqa: NPY002 (leaves half a pair behind, which is part of the state)
    state = random_state()
    expected = draw()
    assert draw() != expected
    set_random_state(state)
    assert draw() == expected
