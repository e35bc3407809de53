"""Starts of one run on two ranks, forked from a process that has imported everything; all but the last are killed or preempted.

usage: python killed_starts.py JOB

The job has the ``recipe``, the ``run`` folder, and ``kills``: one for each start but the last, as for ``drive.py``. Prints the
exit statuses of each start's ranks.
"""

import json
import multiprocessing
import os
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

import drive
import wandb.sdk.wandb_run

import vigil_data.card.collect
import vigil_data.card.markdown
from vigil_training.distributed.preemption import Preempted, Preemption
from vigil_training.distributed.world import find_world
from vigil_training.recipe.recipe import Recipe
from vigil_training.trainer.fit import fit_recipe

IMPORTED = (wandb.sdk.wandb_run, vigil_data.card.collect, vigil_data.card.markdown)
"""What a start imports late, which takes seconds."""

RANKS = 2
SECONDS = 300.0


def train(rank: int, port: int, job: dict[str, Any], options: dict[str, Any]) -> None:
    """Train as one rank."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in numbers.items()}}
    drive.watch(options)
    world = find_world()
    assert world is not None
    recipe = Recipe.model_validate(job["recipe"])
    try:
        with Preemption() as preemption:
            fit_recipe(recipe, recipe.model_dump_json(), job["run"], world, preemption)
    except Preempted as preempted:
        sys.exit(preempted.status)


def start(job: dict[str, Any], options: dict[str, Any]) -> list[int | None]:
    """Start all ranks, wait for them, and return their exit statuses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=train, args=(rank, port, job, options)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in ranks]


if __name__ == "__main__":
    warnings.simplefilter("error")
    job = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps([start(job, {"every_step": True, "kill": kill}) for kill in [*job["kills"], None]]))
