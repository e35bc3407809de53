"""Runs on a real Slurm cluster by `vigil submit`: preempted, requeued, with nodes killed and cut off, they end bitwise equal."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_run
import torch

from vigil_training.checkpoint.reader import CheckpointReader, list_checkpoints
from vigil_training.recipe.recipe import Recipe
from vigil_training.runs.run import Run

pytestmark = pytest.mark.slurm

VIGIL = Path(sys.executable).with_name("vigil")


@pytest.fixture(scope="module")
def recipes(material):
    """Function that writes a variant of the tiny recipe."""

    def make(name, nodes, devices, stage=2, **changes):
        strategy = {"kind": "deepspeed", "stage": stage, "nodes": nodes, "devices": devices}
        fixed = {"strategy": strategy, "training__epochs": 30, "checkpoint__every_steps": 5, "tracking__mode": "offline"}
        values = tiny_run.recipe_values(material, name=name, **{**fixed, **changes})
        path = material / f"{name}.yaml"
        path.write_text(Recipe.model_validate(values).model_dump_json())
        return path

    return make


@pytest.fixture(scope="module")
def undisturbed(recipes, tmp_path_factory):
    """Function that trains on two ranks of this machine, without Slurm."""

    def train(stage, **changes):
        run = tmp_path_factory.mktemp("undisturbed") / "run"
        recipe = recipes(f"undisturbed-{stage}", nodes=1, devices=2, stage=stage, tracking__mode="disabled", **changes)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([VIGIL, "train", recipe, "--run", run], env=environment, check=True, capture_output=True, timeout=300)
        return run

    return train


class SubmittedRun:
    """A run that was submitted to Slurm."""

    def __init__(self, cluster, repository, recipe, run, *options, profile="dev-cluster"):
        self.cluster, self.run = cluster, run
        self.env = {**cluster.env, "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(run.parent / "state")}
        site = repository / "slurm" / "sites" / f"{profile}.yaml"
        output = self.vigil("submit", recipe, "--profile", site, "--run", run, *options)
        self.number = output.split()[1].rstrip(":")

    def vigil(self, *words):
        done = subprocess.run([VIGIL, *map(str, words)], env=self.env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def log(self):
        return "".join(path.read_text() for path in (self.run / "slurm").glob("*.log"))

    def steps_after(self, step, restarts, timeout=180):
        """Wait until the start number ``restarts`` has written a checkpoint past ``step``, and return its step."""
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
    """Compare weights and AdamW state of the last checkpoints bit by bit."""
    one, other = (CheckpointReader(Run(run).checkpoint("last")) for run in (left, right))
    for kind in ("weight", "exp_avg", "exp_avg_sq", "step"):
        assert one.names(kind) == other.names(kind) != []
        assert [n for n in one.names(kind) if not torch.equal(one.read_full(kind, n), other.read_full(kind, n))] == []
    assert (left / "thresholds.json").read_text() == (right / "thresholds.json").read_text()


def test_submitted_run_survives_preemption_a_requeue_and_a_dead_node(cluster, repository, recipes, undisturbed, tmp_path):
    expected = undisturbed(2)
    submitted = SubmittedRun(cluster, repository, recipes("two-nodes", nodes=2, devices=1), tmp_path / "run")
    saved = submitted.steps_after(0, restarts=0)
    cluster.command("scancel", "--signal=USR1", f"{submitted.number}.0")
    saved = submitted.steps_after(saved + 20, restarts=1)
    cluster.command("scontrol", "requeue", submitted.number)
    submitted.steps_after(saved + 20, restarts=2)
    cluster.kill("n2")
    try:
        fields = submitted.wait({"COMPLETED"}, restarts=3)
    finally:
        cluster.heal("n2")
    assert int(fields["Restarts"]) == 3
    assert_same(expected, submitted.run)

    # It is one run, and its log has every restart.
    log = (submitted.run / "train.log").read_text()
    assert log.count("from the beginning") == 1
    assert log.count("resuming") == 3
    assert len({path.name.split("-")[-1] for path in (submitted.run / "wandb").glob("offline-run-*")}) == 1
    assert [line["event"] for line in submitted.attempts()].count("start") == 4
    assert not (submitted.run / "failure.json").exists()
    preflight = json.loads((submitted.run / "environment.json").read_text())["preflight"]
    assert len(preflight["hosts"]) == 2
    assert preflight["all_reduce_bytes_per_second"] > 0
    (job,) = json.loads(submitted.vigil("jobs", "--json"))
    assert (job["state"], job["restarts"], Path(job["run"]).name) == ("COMPLETED", 3, "run")
    assert "finished; the run is in" in submitted.vigil("logs", submitted.run)


def test_submitted_run_resumes_without_a_node_that_is_cut_off(cut_cluster, repository, recipes, undisturbed, tmp_path):
    expected = undisturbed(3, training__epochs=20)
    recipe = recipes("cut", nodes=2, devices=1, stage=3, training__epochs=20)
    submitted = SubmittedRun(cut_cluster, repository, recipe, tmp_path / "run", profile="dev-cluster-namespaces")
    submitted.steps_after(0, restarts=0)
    cut_cluster.cut("n2")
    try:
        submitted.wait({"COMPLETED"}, restarts=1)
    finally:
        cut_cluster.heal("n2")
    assert_same(expected, submitted.run)
    assert (submitted.run / "train.log").read_text().count("from the beginning") == 1


def test_submitted_run_with_a_reported_failure_is_not_requeued(cluster, repository, recipes, tmp_path):
    recipe = recipes("wrong", nodes=2, devices=1, data__train="trian")
    submitted = SubmittedRun(cluster, repository, recipe, tmp_path / "run")
    fields = submitted.wait({"FAILED"})
    assert (fields["Restarts"], fields["ExitCode"]) == ("0", "2:0")
    assert "has no split trian" in json.loads((submitted.run / "failure.json").read_text())["lines"][0]
    assert "failed; not requeued" in submitted.log()


def test_submitted_run_gives_up_and_can_be_cancelled_and_resumed(cluster, repository, recipes, tmp_path):
    recipe = recipes("bounded", nodes=2, devices=1, stage=3)
    submitted = SubmittedRun(cluster, repository, recipe, tmp_path / "run", "--max-requeues", "0")
    saved = submitted.steps_after(0, restarts=0)
    cluster.command("scancel", "--signal=USR1", f"{submitted.number}.0")
    fields = submitted.wait({"FAILED"})
    assert (fields["Restarts"], fields["ExitCode"]) == ("0", "1:0")
    assert "gave up: preempted (status 85) after 0 requeues, and max_requeues is 0" in submitted.log()
    (job,) = json.loads(submitted.vigil("jobs", "--json"))
    assert (job["state"], job["active"]) == ("GAVE UP", False)

    # The same command resumes it; `vigil cancel --signal` saves a checkpoint and is not requeued.
    submitted = SubmittedRun(cluster, repository, recipe, tmp_path / "run")
    submitted.steps_after(saved + 10, restarts=1)
    submitted.vigil("cancel", submitted.run, "--signal", "USR1")
    assert submitted.wait({"FAILED"})["Restarts"] == "0"
    (job,) = json.loads(submitted.vigil("jobs", "--json"))
    assert (job["state"], job["job"]) == ("STOPPED", submitted.number)
    assert [line.get("outcome") for line in submitted.attempts()] == [None, "gave-up", None, "stopped"]
    log = (submitted.run / "train.log").read_text()
    assert (log.count("from the beginning"), log.count("resuming")) == (1, 1)
    assert not (submitted.run / "failure.json").exists()
