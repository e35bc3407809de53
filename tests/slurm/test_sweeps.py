"""Sweeps on a real Slurm cluster by `vigil sweep submit`: workers are killed and a node is cut off, and every trial ends once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import tiny_run

from vigil_training.recipe.recipe import Recipe
from vigil_training.sweeps.event_log import ENDED
from vigil_training.sweeps.sweep_folder import SweepFolder

pytestmark = pytest.mark.slurm

VIGIL = Path(sys.executable).with_name("vigil")
TRIALS, TASKS = 24, 4

# The processes of a node that is cut off stay alive here, as on a real one, and so do their heartbeats: they share a file system
# with the other nodes. Its trials hang, as if the file system did not answer.
FUNCTION = """
import os, time
from pathlib import Path

def score(point, report):
    value, cut = -(point["x"] - 0.3) ** 2, Path(__file__).with_name("cut-" + os.environ["SLURMD_NODENAME"])
    for epoch in range(1, 10):
        time.sleep(0.1)
        while cut.exists():
            time.sleep(0.5)
        if report(epoch, {"score": value - 0.5 / epoch}):
            break
    return {"score": value}
"""

SWEEP = f"""
name: small
trials: {TRIALS}
sampler: {{kind: tpe, startup: 6}}
pruner: {{kind: asha}}
# All tasks may run on the node that is cut off, with trials that were lost before.
retries: 5
# So long that only Slurm can reveal a lost worker.
stale_after: 3600
"""
OF_FUNCTION = "function: objective:score\nmetric: {name: score, direction: maximize}\nspace: {x: {float: [0.0, 1.0]}}\n"
OF_TRAININGS = "recipe: recipe.yaml\nmetric: validation/macro_ap\nspace: {optimizer.lr: {log: [1.0e-6, 1.0e-1]}}\n"


class SubmittedSweep:
    """A sweep that was submitted to Slurm, in the working folder of its submission."""

    def __init__(self, cluster, repository, folder, text):
        self.cluster, self.folder = cluster, folder
        self.env = {**cluster.env, "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(folder / "state")}
        (folder / "sweep.yaml").write_text(text)
        site = repository / "slurm" / "sites" / "dev-cluster-namespaces.yaml"
        output = self.vigil("submit", "sweep.yaml", "--tasks", TASKS, "--profile", site, "--to", "sweep")
        self.number = output.split()[1].rstrip(":")
        self.sweep = SweepFolder(folder / "sweep")

    def vigil(self, *words):
        command = [VIGIL, "sweep", *map(str, words)]
        done = subprocess.run(command, env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def running(self):
        """Return the trial, process and task of each worker that is at work."""
        log = self.sweep.read()
        found = []
        for trial in log.open_trials():
            worker = log.claimant(trial.number, trial.last) if trial.last >= 0 else None
            if worker in log.workers and trial.attempts[trial.last].state == "RUNNING":
                facts = log.workers[worker]
                found.append((trial.number, facts["pid"], facts["slurm"]["job"]))
        return found

    def wait(self, reached, timeout):
        """Wait until a condition holds for the number of trials that have ended."""
        end = time.monotonic() + timeout
        while not reached(ended := sum(trial.ended for trial in self.sweep.read().trials)):
            assert time.monotonic() < end, f"{ended} trials have ended\n{self.logs()}"
            time.sleep(0.1)

    def logs(self):
        files = [*(self.sweep.path / "workers").glob("*/slurm/*"), *(self.sweep.path / "logs").glob("*")]
        return "\n".join(f"{file}:\n{file.read_text()[-1500:]}" for file in sorted(files))

    def disturb(self):
        """Kill two workers and cut off the node of a third, each with a trial; return the node and the three trials."""
        disturbed = {}
        while len(disturbed) < 2:
            for trial, process, task in self.running():
                if task not in disturbed and len(disturbed) < 2:
                    os.kill(process, signal.SIGKILL)
                    disturbed[task] = trial
            time.sleep(0.05)
        while len(disturbed) < 3:
            for trial, _, task in self.running():
                if task not in disturbed and len(disturbed) < 3:
                    node = self.cluster.job(task)["NodeList"]
                    (self.folder / f"cut-{node}").touch()
                    time.sleep(0.5)
                    if (trial, task) in [(number, at) for number, _, at in self.running()]:
                        self.cluster.cut(node)
                        disturbed[task] = trial
                    else:  # It had just ended.
                        (self.folder / f"cut-{node}").unlink()
            time.sleep(0.05)
        return node, set(disturbed.values())


def check(submitted, disturbed):
    """Compare the events of all workers with what a sweep must leave, and return its study."""
    ends, starts = Counter(), Counter()
    for file in (submitted.sweep.path / "events").glob("*.jsonl"):
        for line in file.read_text().splitlines():
            event = json.loads(line)
            ends[event.get("trial")] += event.get("state") in ENDED
            starts[event.get("trial")] += event.get("state") == "RUNNING"
    ended = {trial: count for trial, count in ends.items() if trial is not None}
    assert ended == dict.fromkeys(range(TRIALS), 1)
    study = submitted.sweep.study()
    again = {trial.number for trial in study.trials if trial.user_attrs["attempts"] > 1}
    assert disturbed <= again
    states = Counter(trial.state.name for trial in study.trials)
    assert states["COMPLETE"] + states["PRUNED"] == TRIALS, [trial.user_attrs for trial in study.trials]
    assert states["PRUNED"] > 0
    assert study.best_value > next(trial.value for trial in study.trials if trial.state.name == "COMPLETE")
    return study


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        pytest.param(OF_FUNCTION, 150, id="function"),
        pytest.param(
            OF_TRAININGS,
            1800,
            id="trainings",
            marks=pytest.mark.skipif(os.environ.get("VIGIL_PROVE") != "1", reason="trains 24 models; VIGIL_PROVE=1 runs it"),
        ),
    ],
)
def test_sweep_of_four_tasks_survives_two_kills_and_a_node_that_is_cut_off(
    cut_cluster, repository, tmp_path, request, text, seconds
):
    (tmp_path / "objective.py").write_text(FUNCTION)
    if text is OF_TRAININGS:
        dataset = request.getfixturevalue("material")
        recipe = tiny_run.recipe_values(dataset, name="tiny", training__epochs=9, tracking__mode="offline")
        (tmp_path / "recipe.yaml").write_text(Recipe.model_validate(recipe).model_dump_json())
    submitted = SubmittedSweep(cut_cluster, repository, tmp_path, SWEEP + text)
    node = None
    try:
        submitted.wait(lambda ended: ended >= 4, seconds)
        node, disturbed = submitted.disturb()
        submitted.wait(lambda ended: ended == TRIALS, seconds)
        study = check(submitted, disturbed)
    finally:
        subprocess.run(["scancel", submitted.number], env=submitted.env, check=False, timeout=30)
        for cut in tmp_path.glob("cut-*"):
            cut.unlink()
        if node is not None:
            cut_cluster.heal(node)
    assert f"{TRIALS} of {TRIALS} trials have ended" in submitted.vigil("status", "sweep")
    assert f"best: trial {study.best_trial.number}" in submitted.vigil("status", "sweep")
    submitted.vigil("plot", "sweep")
    assert f"{TRIALS} of {TRIALS}" in (tmp_path / "sweep" / "sweep.html").read_text()
    jobs = json.loads(subprocess.check_output([VIGIL, "jobs", "--json"], env=submitted.env, text=True, timeout=60))
    assert {Path(job["run"]).name for job in jobs} == {f"task-{task}" for task in range(TASKS)}
    assert sum(job["sweep"]["ended"] for job in jobs) == TRIALS
    if text is OF_TRAININGS:
        ids = {(submitted.sweep.run_folder(trial.number) / "run_id").read_text() for trial in study.trials}
        assert len(ids) == TRIALS
