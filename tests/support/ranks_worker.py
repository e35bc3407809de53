"""One rank of tests/training/distributed/test_fsdp2.py: fits several recipes, one after another, in one process.

Run as ``python ranks_worker.py JOB`` with the variables of a launcher in the environment. Each entry of the job has a ``recipe``,
a ``run`` folder, a free ``port``, and optionally ``from`` (a run whose checkpoints it continues under its own strategy), ``stop``
(step at which it is asked to stop) and ``nan`` (step whose loss is NaN on the last rank).
"""

import json
import shutil
import sys
import warnings
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from vigil_training.checkpoint.reader import CheckpointReader, last_checkpoint
from vigil_training.distributed.preemption import Preempted
from vigil_training.distributed.world import World, find_world
from vigil_training.recipe.recipe import Recipe
from vigil_training.trainer import fit
from vigil_training.trainer.callbacks import CheckpointCallback, RankSync, metrics
from vigil_training.trainer.lightning_module import TrainingModule

current: dict[str, Any] = {}
"""The entry of the job that is being fitted."""
world = find_world() or World()
step, start, exchange = TrainingModule.training_step, CheckpointCallback.on_train_start, RankSync.on_train_batch_end


def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
    loss = step(self, batch, batch_idx)
    is_bad = self.trainer.global_step + 1 == current.get("nan") and world.rank + 1 == world.size
    return loss * float("nan") if is_bad else loss


def on_train_start(self: Any, trainer: Any, module: Any) -> None:
    """Compare what the strategy holds after loading with the files, bit by bit."""
    start(self, trainer, module)
    if "from" in current:
        reader = CheckpointReader(last_checkpoint(Path(current["from"]) / "checkpoints"))
        elements = dict.fromkeys(("weight", "exp_avg", "exp_avg_sq", "step", "average"), 0)
        different = []
        for held in chain(trainer.strategy.fragments(module.model), *(s.fragments() for s in trainer.strategy.further)):
            stored = reader.read_range(held.kind, held.name, held.start, held.values.numel())
            elements[held.kind] += held.values.numel()
            if not torch.equal(stored, held.values.detach().to(stored.dtype)):
                different.append(f"{held.kind} {held.name}")
        Path(f"{current['run']}-loaded-{world.rank}.json").write_text(json.dumps({"elements": elements, "different": different}))


def on_train_batch_end(self: Any, trainer: Any, *rest: Any, **named: Any) -> None:
    if trainer.global_step == current.get("stop"):
        self._session.preemption.asked = "SIGTERM"
    exchange(self, trainer, *rest, **named)


def main() -> None:
    warnings.simplefilter("error")
    metrics.LOG_EVERY_N_STEPS = 1
    TrainingModule.training_step, CheckpointCallback.on_train_start = training_step, on_train_start  # type: ignore[method-assign]
    RankSync.on_train_batch_end = on_train_batch_end  # type: ignore[method-assign]
    # Checkpoints of one strategy are continued under another, whose recipe is another one.
    fit.recipe_digest = lambda recipe: "0" * 64  # type: ignore[attr-defined]
    for entry in json.loads(Path(sys.argv[1]).read_text())["fits"]:
        current.clear()
        current.update(entry)
        recipe, run = Recipe.model_validate(entry["recipe"]), Path(entry["run"])
        text = recipe.model_dump_json(indent=1)
        if "from" in entry and world.is_main:
            shutil.copytree(entry["from"], run)
            (run / "resolved.yaml").write_text(text)
        try:
            fit.fit_recipe(recipe, text, run, replace(world, port=entry["port"]))
        except Preempted:
            assert "stop" in entry


if __name__ == "__main__":
    main()
