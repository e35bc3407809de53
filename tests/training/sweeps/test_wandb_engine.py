"""`engine: wandb`: what W&B's sweeps are told, what they cannot express, and its agent against a stand-in of the server."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_wandb
import pytest
import tiny_run
import yaml

from vigil_data.errors import UserError
from vigil_training.distributed.preemption import Preemption
from vigil_training.recipe.recipe import Recipe
from vigil_training.sweeps.results import read_results
from vigil_training.sweeps.sweep_file import read_sweep
from vigil_training.sweeps.sweep_folder import SweepFolder, open_sweep
from vigil_training.sweeps.wandb_engine.config import wandb_config
from vigil_training.sweeps.worker import close_lost_trials, run_point

SWEEP = """
name: cheap
function: objective:score
metric: {name: score, direction: minimize}
trials: 5
pruner: {kind: asha, min_epochs: 2, reduction: 4}
space:
  a: {log: [1.0e-5, 1.0e-2]}
  b: {float: [0, 1]}
  c: {int: [2, 6]}
  d: {int: [2, 6], step: 2}
  e: {choice: [x, [1, 2]]}
"""


def folder_of(tmp_path: Path, text: str) -> SweepFolder:
    (tmp_path / "sweep.yaml").write_text(text)
    return open_sweep(read_sweep(tmp_path / "sweep.yaml"), tmp_path / "sweep")


def test_wandb_config_has_the_space_the_pruner_and_the_command(tmp_path: Path) -> None:
    config = wandb_config(folder_of(tmp_path, SWEEP))
    assert config["parameters"] == {
        "a": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2},
        "b": {"distribution": "uniform", "min": 0.0, "max": 1.0},
        "c": {"distribution": "int_uniform", "min": 2, "max": 6},
        "d": {"values": [2, 4, 6]},
        "e": {"values": ["x", "[1, 2]"]},
    }
    assert (config["method"], config["metric"], config["run_cap"]) == ("bayes", {"name": "score", "goal": "minimize"}, 5)
    assert config["early_terminate"] == {"type": "hyperband", "min_iter": 2, "eta": 4}
    assert config["command"][-2:] == [str(tmp_path / "sweep"), "${args_json_file}"]


def test_wandb_config_of_a_grid_has_its_values(tmp_path: Path) -> None:
    text = (
        SWEEP.replace("trials: 5", "sampler: {kind: grid}")
        .replace("1.0e-2]", "1.0e-2], points: 4")
        .replace("1]}", "1], points: 3}")
    )
    config = wandb_config(folder_of(tmp_path, text))
    assert config["method"] == "grid"
    assert config["parameters"]["a"]["values"] == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2])
    assert config["parameters"]["b"] == {"values": [0.0, 0.5, 1.0]}


def test_what_a_sweep_of_wandb_cannot_express_is_refused_at_once(tmp_path: Path) -> None:
    text = SWEEP.replace("{name: score, direction: minimize}", "[score, other]").replace(
        "{kind: asha, min_epochs: 2, reduction: 4}", "{kind: none}"
    )
    text += "  f: {int: [1, 2], when: {e: x}}\nengine: wandb\nsampler: {kind: gp, seed: 1}\nconstraints: [b + c <= 5]\n"
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        read_sweep(tmp_path / "sweep.yaml")
    for where, what in (
        ("3: function", "trains a recipe"),
        ("15: sampler.kind", "has no sampler gp"),
        ("15: sampler.seed", "draws the points on W&B's server"),
        ("4: metric", "optimizes one metric"),
        ("16: constraints", "has no constraints"),
        ("13: space.f.when", "has no conditional keys"),
    ):
        assert any(f"{where}: engine wandb {what}" in line for line in caught.value.lines), caught.value.lines


def test_agent_of_wandb_runs_its_points_as_trials(tmp_path: Path, material: Path) -> None:
    values: dict[str, Any] = tiny_run.recipe_values(material, name="tiny", training__epochs=1, tracking__mode="online")
    (tmp_path / "recipe.yaml").write_text(Recipe.model_validate(values).model_dump_json())
    (tmp_path / "sweep.yaml").write_text(
        "name: s\nrecipe: recipe.yaml\nmetric: validation/macro_ap\ntrials: 1\nengine: wandb\nsampler: {kind: random}\n"
        "space: {optimizer.lr: {log: [1.0e-4, 1.0e-2]}}\n"
    )
    with fake_wandb.serve() as server:
        point = {"optimizer.lr": {"value": 0.002}}
        server.agent_commands = [{"type": "run", "run_id": "abcd1234", "args": point, "program": ""}, {"type": "exit"}]
        environment = {**os.environ, "WANDB_API_KEY": fake_wandb.API_KEY, "WANDB_BASE_URL": server.url}
        command = [sys.executable, "-m", "vigil", "sweep", "run", "sweep.yaml"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "W&B's sweep: team/" in done.stdout
    assert yaml.safe_load(server.sweep_config)["method"] == "random"
    folder = SweepFolder(tmp_path / "sweeps" / "s")
    [result] = read_results(folder)
    assert (result.state, result.point) == ("complete", {"optimizer.lr": 0.002})
    run = folder.run_folder(0)
    assert (run / "run_id").read_text().strip() == "abcd1234"
    # W&B has the metric of the run that it asked for, in its sweep.
    assert server.sweep_of["abcd1234"] == "sweep1"
    assert any("validation/macro_ap" in row for row in server.history["abcd1234"].values())
    assert json.loads((folder.path / "wandb-sweep.json").read_text())["path"].endswith("/sweep1")


OBJECTIVE = """
import time

def score(point, report):
    if point["x"] > 0.5:
        report(1, {"score": point["x"]})
    time.sleep(600)
"""


class Stop(Preemption):
    """Asks to stop once a trial has started, or has reported a value."""

    def __init__(self, folder: SweepFolder, *, reported: bool) -> None:
        self._folder, self._reported = folder, reported

    @property
    def asked(self) -> str | None:  # type: ignore[override]
        started = [trial.attempts[0] for trial in self._folder.read().trials if trial.last >= 0 and not trial.ended]
        return "SIGTERM" if any(of.intermediate if self._reported else of.params for of in started) else None


@pytest.mark.parametrize("reported", [True, False])
def test_trial_of_an_agent_that_is_stopped_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reported: bool) -> None:
    (tmp_path / "objective.py").write_text(OBJECTIVE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    folder = folder_of(tmp_path, "name: s\nfunction: objective:score\nmetric: score\ntrials: 1\nspace: {x: {float: [0, 1]}}\n")
    run_point(folder, {"x": 0.75 if reported else 0.25}, Stop(folder, reported=reported))
    [result] = read_results(folder)
    if reported:
        assert (result.state, result.reason) == ("pruned", "stopped after 1 epochs")
    else:
        assert (result.state, result.reason) == ("failed", "it was stopped before its first validation")
    # The sweep has its trial: another point is not run.
    run_point(folder, {"x": 0.1}, Stop(folder, reported=False))
    assert len(read_results(folder)) == 1


def test_trial_of_an_agent_that_was_killed_ends_as_failed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, SWEEP)
    killed = folder.storage()
    killed.log.open(slurm=None)
    killed.create_new_trial(0)
    close_lost_trials(folder)
    assert [result.state for result in read_results(folder)] == ["running"]
    killed.log.close()
    close_lost_trials(folder)
    assert [(result.state, result.reason) for result in read_results(folder)] == [
        ("failed", "it was stopped before its first validation")
    ]
