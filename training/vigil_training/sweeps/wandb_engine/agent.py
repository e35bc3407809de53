"""W&B's sweep of a sweep folder, and its agent."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from vigil_data.errors import Failure
from vigil_data.filesystem import write_file
from vigil_training.distributed.launch import end_with
from vigil_training.distributed.preemption import Preempted, Preemption
from vigil_training.sweeps.sweep_folder import SweepFolder
from vigil_training.sweeps.wandb_engine.config import wandb_config
from vigil_training.sweeps.worker import close_lost_trials

KILL_DELAY_SECONDS = 600
"""Time between W&B's request to stop a trial and its end by force, in which the trial finishes its epoch's validation."""

_POLL_SECONDS = 0.2


def wandb_sweep_file(folder: SweepFolder) -> Path:
    """Return the file that names W&B's sweep."""
    return folder.path / "wandb-sweep.json"


def create_wandb_sweep(folder: SweepFolder) -> str:
    """Create W&B's sweep, unless the folder has one, and return its path: ``ENTITY/PROJECT/ID``.

    Raises:
        Failure: if W&B does not answer, or refuses it.
    """
    file = wandb_sweep_file(folder)
    if not file.is_file():
        import wandb

        assert folder.plan.recipe is not None
        tracking = folder.plan.recipe.tracking
        try:
            number = wandb.sweep(wandb_config(folder), entity=tracking.entity, project=tracking.project)
            entity = tracking.entity or wandb.Api().default_entity
        except Exception as error:  # W&B documents no base class of its errors.
            raise Failure(f"the sweep cannot be created at W&B ({type(error).__name__}: {error}); see `wandb login`") from error
        write_file(file, json.dumps({"path": f"{entity}/{tracking.project}/{number}"}) + "\n")
    return str(json.loads(file.read_text(encoding="utf-8"))["path"])


def run_agent(folder: SweepFolder, stop: Preemption) -> None:
    """Run W&B's agent until W&B has no more trials.

    Args:
        folder: the sweep folder; :func:`create_wandb_sweep` was called.
        stop: says when this agent is asked to stop.

    Raises:
        Preempted: if it was asked to stop; its trial has ended, since W&B continues none.
        Failure: if the agent fails.
    """
    parent = os.getpid()
    close_lost_trials(folder)
    # The agent writes each point into a file in this folder.
    environment = {**os.environ, "WANDB_DIR": str(folder.path.absolute()), "WANDB_AGENT_KILL_DELAY": str(KILL_DELAY_SECONDS)}
    command = [sys.executable, "-m", "wandb", "agent", "--forward-signals", create_wandb_sweep(folder)]
    agent = subprocess.Popen(  # noqa: S603 (our own command)
        command,
        env=environment,
        process_group=0,
        preexec_fn=lambda: end_with(parent),  # noqa: PLW1509
    )
    asked = False
    try:
        while agent.poll() is None:
            if stop.asked is not None and not asked:
                asked = True
                agent.terminate()
            time.sleep(_POLL_SECONDS)
    finally:
        if agent.poll() is None:
            agent.terminate()
            agent.wait()
    if stop.asked is not None:
        raise Preempted(f"stopped by {stop.asked}; the same command continues the sweep")
    if agent.returncode:
        raise Failure(f"W&B's agent ended with status {agent.returncode}; see above")
    close_lost_trials(folder)
