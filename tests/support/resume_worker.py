"""One rank of tests/training/distributed/test_resumed_state.py: trains recipes, stops and resumes them, all in one process.

Run as ``python resume_worker.py JOB`` under :func:`vigil_training.distributed.launch.launch`. The job lists recipe, run folder
and the optimizer step after which the run is stopped once; ``null`` trains it without a stop.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch.distributed as dist

from vigil_training.distributed.world import find_world
from vigil_training.recipe.recipe import Recipe
from vigil_training.trainer.callbacks import MetricsCallback
from vigil_training.trainer.fit import fit_recipe
from vigil_training.trainer.lightning_internals import ends_optimizer_step


class Stop(Exception):
    """Stops a run on all ranks."""


def run(recipe: Recipe, folder: Path, stop: int | None) -> None:
    """Train a recipe; stopped after the metrics of a step, so that the checkpoint of the step before is the last."""
    record = MetricsCallback.on_train_batch_end
    world = find_world()
    assert world is not None

    def on_train_batch_end(self: Any, trainer: Any, *rest: Any) -> None:
        record(self, trainer, *rest)
        if trainer.global_step == stop and ends_optimizer_step(trainer):
            raise Stop

    if stop is not None:
        MetricsCallback.on_train_batch_end = on_train_batch_end  # type: ignore[method-assign]
        try:
            fit_recipe(recipe, recipe.model_dump_json(), folder, world)
        except Stop:
            MetricsCallback.on_train_batch_end = record  # type: ignore[method-assign]
        else:
            raise AssertionError(f"{folder} was not stopped")
    fit_recipe(recipe, recipe.model_dump_json(), folder, world)


if __name__ == "__main__":
    warnings.simplefilter("error")
    # DeepSpeed keeps its process groups for the life of a process, so all starts share them.
    join, dist.destroy_process_group = dist.init_process_group, lambda: None
    dist.init_process_group = lambda *args, **named: None if dist.is_initialized() else join(*args, **named)
    for entry in json.loads(Path(sys.argv[1]).read_text()):
        run(Recipe.model_validate(entry["recipe"]), Path(entry["run"]), entry["stop"])
