"""A training on two ranks that is killed and requeued five times is one run, read from the files of W&B's library."""

import json
from collections import Counter
from itertools import pairwise

import pytest
import yaml
from driven_training import train
from wandb_log import logged_metrics, read_parts

from vigil_training.runs.run import Run
from vigil_training.tracking.metrics import METRICS, is_exact

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
    file = folder / "recipe.yaml"
    file.write_text(recipe.model_dump_json())
    runs = []
    for name, kills in (("killed", KILLS), ("whole", [])):
        for kill in kills:
            train(file, folder / name, statuses=(85,), every_step=True, warnings="error", kill=kill)
        train(file, folder / name, every_step=True, warnings="error")
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
