"""A run that continues with another number of ranks: each item of an epoch once, and a learning rate without a jump."""

import json
from itertools import pairwise

import driven_training
import numpy as np
import pytest

from vigil_data.errors import UserError
from vigil_training.checkpoint.reader import last_checkpoint, read_manifest
from vigil_training.runs.run import Run, check_run, recipe_digest
from vigil_training.trainer.lr_scheduler import lr_multiplier, schedule_position


def start(recipe, folder, **options):
    """Train as a process under observation; return its exit status."""
    (folder / "recipe.yaml").write_text(recipe.model_dump_json())
    return driven_training.train(folder / "recipe.yaml", folder / "run", statuses=(0, 85), **options)[0]


def test_fit_recipe_reads_the_rest_of_the_epoch_once_with_other_ranks(make_recipe, tmp_path):
    def recipe(devices):
        return make_recipe(
            strategy={"kind": "ddp", "devices": devices},
            training__resume_world="repartition",
            training__epochs=2,
            data__batch={"budget": 40, "pool": 3, "cost": {"image": 16}},
        )

    seen = tmp_path / "seen"
    seen.mkdir()
    assert start(recipe(2), tmp_path, seen=str(seen), every_step=True, kill={"step": 5, "signal": "SIGUSR1"}) == 85
    assert read_manifest(last_checkpoint(tmp_path / "run" / "checkpoints")).world == 2
    assert start(recipe(1), tmp_path, seen=str(seen), every_step=True) == 0
    lines = [json.loads(line) for file in seen.glob("*.jsonl") for line in file.read_text().splitlines()]
    epochs = [sorted(id_ for line in lines if line["epoch"] == epoch for id_ in line["ids"]) for epoch in (0, 1)]
    assert len(epochs[0]) == len(set(epochs[0])) == 108
    assert epochs[0] == epochs[1]
    log = (tmp_path / "run" / "train.log").read_text()
    assert "2 ranks made the checkpoint: what is left of its epoch is dealt out to 1" in log
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["train/lr"] for line in metrics if "train/lr" in line}
    assert sorted(rates) == list(range(1, max(rates) + 1))
    in_order = np.array([rates[step] for step in sorted(rates)]) / recipe(1).optimizer.lr
    assert in_order.max() <= 1 + 1e-6
    assert (np.diff(in_order[in_order.argmax() :]) < 0).all()
    assert np.abs(np.diff(in_order)).max() <= 1 / 7 + 1e-6, "no step is larger than one of the warm-up of the 2 ranks"
    assert Run(tmp_path / "run").recipe.strategy.devices == 1


def test_check_run_lets_the_ranks_change_only_with_repartition(make_recipe, tmp_path):
    def recipe(devices, rule):
        return make_recipe(strategy={"kind": "ddp", "devices": devices}, training__resume_world=rule)

    assert recipe_digest(recipe(2, "repartition")) == recipe_digest(recipe(1, "repartition"))
    assert recipe_digest(recipe(2, "exact")) != recipe_digest(recipe(1, "exact"))
    for rule in ("exact", "repartition"):
        folder = tmp_path / rule
        folder.mkdir()
        (folder / "resolved.yaml").write_text(recipe(2, rule).model_dump_json())
        (folder / "thresholds.json").write_text("{}")  # a finished run
    assert check_run(recipe(1, "repartition"), tmp_path / "repartition")
    with pytest.raises(UserError, match="holds a run of a different recipe"):
        check_run(recipe(1, "exact"), tmp_path / "exact")


def test_schedule_position_takes_the_rest_of_the_schedule_evenly():
    # 100 steps planned; at step 40 half as many ranks: 120 are left; at step 100 twice as many: 30 are left.
    position = schedule_position([0, 40, 100], [100, 160, 130])
    shares = [position(step) / 130 for step in (0, 40, 70, 100, 115, 130)]
    assert shares == pytest.approx([0, 0.4, 0.55, 0.7, 0.85, 1.0])
    rates = [lr_multiplier(position(step), 130, 0.1, 0.0) for step in range(130)]
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(abs(a - b) for a, b in pairwise(rates)) < 0.11
