"""A training on two ranks that is killed and requeued five times is one run, read from the files of W&B's library."""

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from wandb_log import logged_metrics, read_parts

from vigil_training.runs.run import Run
from vigil_training.tracking.metrics import METRICS, is_exact

WORKER = Path(__file__).parents[2] / "support" / "killed_starts.py"
KILLS = [
    {"signal": "SIGKILL", "rank": 0, "step": 5},
    {"signal": "SIGTERM", "rank": 1, "step": 8},
    {"signal": "SIGKILL", "rank": 1, "step": 10},
    {"signal": "SIGUSR1", "rank": 0, "step": 12},
    {"signal": "SIGKILL", "rank": 0, "step": 14},
]
ALWAYS = ("", "ranks", "classification", "text", "images", "Linux", "several ranks")
"""What metrics need that this training has."""


@pytest.fixture(scope="module")
def killed(make_recipe, tmp_path_factory):
    """The run that was killed, and the same without a kill."""
    folder = tmp_path_factory.mktemp("killed")
    recipe = make_recipe(
        strategy={"kind": "ddp", "devices": 2},
        checkpoint={"every_steps": 2},
        tracking={"mode": "offline", "group": "trials", "tags": ["x"]},
    )
    runs = []
    for name, kills in (("killed", KILLS), ("whole", [])):
        job = folder / f"{name}.json"
        job.write_text(json.dumps({"recipe": recipe.model_dump(mode="json"), "run": str(folder / name), "kills": kills}))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        done = subprocess.run(
            [sys.executable, WORKER, job], env=environment, capture_output=True, text=True, timeout=1500, check=False
        )
        assert done.returncode == 0, done.stderr[-5000:]
        *stopped, last = json.loads(done.stdout)
        assert last == [0, 0], done.stderr[-5000:]
        assert [status for start in stopped for status in start if status not in (85, -9)] == [], done.stderr[-5000:]
        runs.append(Run(folder / name))
    return runs


def rows_of(run):
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def test_parts_of_a_killed_training_are_one_run(killed):
    run, _ = killed
    parts = [part for part in read_parts(run.path) if part.id]
    assert 4 <= len(parts) <= len(KILLS) + 1, "a start that is killed before W&B first writes leaves none"
    assert {(part.id, part.name, part.group, part.tags) for part in parts} == {(run.run_id, "killed", "trials", ("x",))}
    assert parts[-1].exit_code == 0
    titles = Counter(title for part in parts for title, _ in part.alerts)
    assert titles["killed: preempted"] == 2
    assert titles["killed: lost another rank"] == 1
    for part in parts:
        assert part.config["recipe"] == json.loads(run.recipe.model_dump_json())
        assert yaml.safe_load(part.files["resolved.yaml"])["name"] == "tiny"


def test_curves_of_a_killed_training_have_no_doubled_or_backward_step(killed):
    run, whole = killed
    parts = read_parts(run.path)
    logged = logged_metrics(parts)
    assert all(former <= step for (former, _), (step, _) in pairwise(logged))
    assert max(Counter(logged).values()) == 1
    expected = {(row["step"], name): value for row in rows_of(run) for name, value in row.items() if name != "step"}
    found = {(row["trainer/global_step"], name): value for part in parts for row in part.history for name, value in row.items()}
    assert {key: value for key, value in found.items() if key in expected} == expected
    assert {step for step, _ in logged} == {row["step"] for row in rows_of(run)}

    def exact(run):
        return [{name: value for name, value in row.items() if name == "step" or is_exact(name)} for row in rows_of(run)]

    assert exact(run) == exact(whole)


def test_parts_hold_every_metric(killed):
    run, _ = killed
    names = {name for _, name in logged_metrics(read_parts(run.path))}
    missing = [metric.name for metric in METRICS if metric.needs in ALWAYS and not any(map(metric.matches, names))]
    assert missing == []
    assert [name for name in names if not any(metric.matches(name) for metric in METRICS)] == []
