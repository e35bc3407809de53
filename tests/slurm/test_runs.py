"""Runs on real Slurm nodes, sent by `vigil submit`: preempted, requeued, their nodes killed and cut off, they end the same."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vigil_training.checkpoint.reader import CheckpointReader, list_checkpoints
from vigil_training.runs.run import Run

pytestmark = pytest.mark.slurm

VIGIL = Path(sys.executable).with_name("vigil")


@pytest.fixture(scope="module")
def recipes(tmp_path_factory, repository):
    """A folder with the tiny dataset of the training tests, and a function that writes a recipe there."""
    spec = importlib.util.spec_from_file_location("training_conftest", repository / "tests" / "training" / "conftest.py")
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    from vigil_data.dataset.dataset import write
    from vigil_training.recipe.recipe import Recipe

    folder = tmp_path_factory.mktemp("slurm")
    tiny.write_tokenizer(folder / "tokenizer.json")
    write(folder / "dataset", [*tiny.make_items(120, "train", 0), *tiny.make_items(40, "validation", 1)])

    def make(name, nodes, devices, stage=2, **changes):
        strategy = {"kind": "deepspeed", "stage": stage, "nodes": nodes, "devices": devices}
        fixed = {"strategy": strategy, "training__epochs": 60, "checkpoint__every_steps": 5, "tracking__mode": "offline"}
        values = tiny.recipe_values(folder, name=name, **{**fixed, **changes})
        path = folder / f"{name}.yaml"
        path.write_text(Recipe.model_validate(values).model_dump_json())
        return path

    return make


@pytest.fixture(scope="module")
def undisturbed(recipes, tmp_path_factory):
    """What two ranks of this machine leave, without Slurm."""

    def train(stage, **changes):
        run = tmp_path_factory.mktemp("undisturbed") / "run"
        recipe = recipes(f"undisturbed-{stage}", nodes=1, devices=2, stage=stage, tracking__mode="disabled", **changes)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([VIGIL, "train", recipe, "--run", run], env=environment, check=True, capture_output=True, timeout=300)
        return run

    return train


class Sent:
    """A run that was handed to Slurm."""

    def __init__(self, cluster, repository, recipe, run, *options, profile="dev-cluster"):
        self.cluster, self.run = cluster, run
        self.env = {**cluster.env, "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(run.parent / "state")}
        site = repository / "slurm" / "sites" / f"{profile}.yaml"
        said = self.vigil("submit", recipe, "--profile", site, "--run", run, *options)
        self.number = said.split()[1].rstrip(":")

    def vigil(self, *words):
        done = subprocess.run([VIGIL, *map(str, words)], env=self.env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def log(self):
        return "".join(path.read_text() for path in (self.run / "slurm").glob("*.log"))

    def steps_after(self, step, restarts, timeout=180):
        """Wait until the start number ``restarts`` has written a checkpoint past ``step``; gives its step."""
        end = time.monotonic() + timeout
        while True:
            starts = [line for line in self.attempts() if line["event"] == "start"]
            steps = [int(path.name[-8:]) for path in list_checkpoints(self.run / "checkpoints")]
            if len(starts) > restarts and steps and steps[-1] > step:
                return steps[-1]
            assert time.monotonic() < end, self.log()
            time.sleep(0.05)

    def attempts(self):
        path = self.run / "slurm" / "attempts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def wait(self, states, timeout=300, restarts=0):
        return self.cluster.wait(self.number, states, timeout, restarts)


def assert_same(left, right):
    """Weights and moments, bit by bit, of the last checkpoints."""
    one, other = (CheckpointReader(Run(run).checkpoint("last")) for run in (left, right))
    for kind in ("weight", "exp_avg", "exp_avg_sq", "step"):
        assert one.names(kind) == other.names(kind) != []
        assert [n for n in one.names(kind) if not torch.equal(one.read_full(kind, n), other.read_full(kind, n))] == []
    assert (left / "thresholds.json").read_text() == (right / "thresholds.json").read_text()


def test_a_run_outlives_preemption_a_requeue_and_a_dead_node(cluster, repository, recipes, undisturbed, tmp_path):
    expected = undisturbed(2)
    sent = Sent(cluster, repository, recipes("two-nodes", nodes=2, devices=1), tmp_path / "run")
    saved = sent.steps_after(0, restarts=0)
    cluster.command("scancel", "--signal=USR1", f"{sent.number}.0")
    saved = sent.steps_after(saved + 20, restarts=1)
    cluster.command("scontrol", "requeue", sent.number)
    sent.steps_after(saved + 20, restarts=2)
    cluster.kill("n2")
    try:
        fields = sent.wait({"COMPLETED"}, restarts=3)
    finally:
        cluster.heal("n2")
    assert int(fields["Restarts"]) == 3
    assert_same(expected, sent.run)

    # The log is honest, and it was one run all the time.
    log = (sent.run / "train.log").read_text()
    assert log.count("from the beginning") == 1
    assert log.count("resuming") == 3
    assert len({path.name.split("-")[-1] for path in (sent.run / "wandb").glob("offline-run-*")}) == 1
    assert [line["event"] for line in sent.attempts()].count("start") == 4
    assert not (sent.run / "failure.json").exists()
    preflight = json.loads((sent.run / "environment.json").read_text())["preflight"]
    assert len(preflight["hosts"]) == 2
    assert preflight["all_reduce_bytes_per_second"] > 0
    (job,) = json.loads(sent.vigil("jobs", "--json"))
    assert (job["state"], job["restarts"], Path(job["run"]).name) == ("COMPLETED", 3, "run")
    assert "finished; the run is in" in sent.vigil("logs", sent.run)


def test_a_run_goes_on_without_a_node_that_was_cut_off(cut_cluster, repository, recipes, undisturbed, tmp_path):
    expected = undisturbed(3, training__epochs=15)
    recipe = recipes("cut", nodes=2, devices=1, stage=3, training__epochs=15)
    sent = Sent(cut_cluster, repository, recipe, tmp_path / "run", profile="dev-cluster-namespaces")
    sent.steps_after(0, restarts=0)
    cut_cluster.cut("n2")
    try:
        sent.wait({"COMPLETED"}, restarts=1)
    finally:
        cut_cluster.heal("n2")
    assert_same(expected, sent.run)
    assert (sent.run / "train.log").read_text().count("from the beginning") == 1


def test_a_failure_with_a_reason_is_not_requeued(cluster, repository, recipes, tmp_path):
    recipe = recipes("wrong", nodes=2, devices=1, data__train="trian")
    sent = Sent(cluster, repository, recipe, tmp_path / "run")
    fields = sent.wait({"FAILED"})
    assert (fields["Restarts"], fields["ExitCode"]) == ("0", "2:0")
    assert "has no split trian" in json.loads((sent.run / "failure.json").read_text())["lines"][0]
    assert "failed, and is not requeued" in sent.log()


def test_requeues_are_bounded_and_a_user_may_stop_and_go_on(cluster, repository, recipes, tmp_path):
    recipe = recipes("bounded", nodes=2, devices=1, stage=3)
    sent = Sent(cluster, repository, recipe, tmp_path / "run", "--max-requeues", "0")
    saved = sent.steps_after(0, restarts=0)
    cluster.command("scancel", "--signal=USR1", f"{sent.number}.0")
    fields = sent.wait({"FAILED"})
    assert (fields["Restarts"], fields["ExitCode"]) == ("0", "1:0")
    assert "gave up: preempted (status 85) after 0 requeues, and max_requeues is 0" in sent.log()
    (job,) = json.loads(sent.vigil("jobs", "--json"))
    assert (job["state"], job["active"]) == ("GAVE UP", False)

    # The same command goes on; `vigil cancel --signal` saves and is not requeued.
    sent = Sent(cluster, repository, recipe, tmp_path / "run")
    sent.steps_after(saved + 10, restarts=1)
    sent.vigil("cancel", sent.run, "--signal", "USR1")
    assert sent.wait({"FAILED"})["Restarts"] == "0"
    (job,) = json.loads(sent.vigil("jobs", "--json"))
    assert (job["state"], job["job"]) == ("STOPPED", sent.number)
    assert [line.get("outcome") for line in sent.attempts()] == [None, "gave-up", None, "stopped"]
    log = (sent.run / "train.log").read_text()
    assert (log.count("from the beginning"), log.count("resuming")) == (1, 1)
    assert not (sent.run / "failure.json").exists()
