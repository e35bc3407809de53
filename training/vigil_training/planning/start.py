"""The plan of a run that starts: its length, and the state of a rank by the arithmetic of `vigil plan`.

Activations are left out: to estimate them takes seconds, which `vigil plan` spends before anything is queued.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng

from vigil_modeling.multimodal_model import MultimodalModel
from vigil_training.planning.memory import build_abstract
from vigil_training.planning.plan import count_tokens, estimate_strategies, frozen_dtypes, measure_sizes
from vigil_training.recipe.recipe import Recipe
from vigil_training.trainer.data_module import DataModule


def plan_start(recipe: Recipe, model: MultimodalModel, data: DataModule, epoch_ends: Sequence[int], ranks: int) -> dict[str, Any]:
    """Return the plan of a run that starts, for ``plan.json``.

    Args:
        recipe: the recipe.
        model: its model, before it is sharded.
        data: rows and batches of the run.
        epoch_ends: optimizer steps at the end of each epoch.
        ranks: number of ranks.
    """
    if "nf4" in frozen_dtypes(recipe, model).values():  # Packed weights no longer have their shapes.
        with isolate_rng():
            model, _ = build_abstract(recipe)
    sizes = measure_sizes(recipe, model, ranks)
    [memory] = [row for row in estimate_strategies(recipe, sizes, ranks, 0, None) if row.chosen]
    first = data.plan(0, resizes=0)
    return {
        "ranks": ranks,
        "steps": epoch_ends[-1],
        "epoch_ends": list(epoch_ends) if recipe.training.max_steps is None else data.epoch_ends(whole=True),
        "items": int(first.lengths().sum()),
        "tokens": count_tokens(recipe, data, first),
        "parameters": sizes.total,
        "trained_parameters": sizes.trained,
        "strategy": memory.name,
        "memory": {**dataclasses.asdict(memory.state), "buffers": sum(memory.buffers.values()), "host": memory.host},
    }
