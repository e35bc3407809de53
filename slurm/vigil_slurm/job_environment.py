"""Slurm job of this process, for the record of a run."""

import os
from collections.abc import Mapping

_VARIABLES = {
    "job": "SLURM_JOB_ID",
    "name": "SLURM_JOB_NAME",
    "array_job": "SLURM_ARRAY_JOB_ID",
    "array_task": "SLURM_ARRAY_TASK_ID",
    "cluster": "SLURM_CLUSTER_NAME",
    "partition": "SLURM_JOB_PARTITION",
    "nodes": "SLURM_JOB_NODELIST",
    "node_count": "SLURM_JOB_NUM_NODES",
    "tasks": "SLURM_NTASKS",
    "restarts": "SLURM_RESTART_COUNT",
}


def read_job_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return facts about the job from Slurm's variables (sbatch(1), "OUTPUT ENVIRONMENT VARIABLES").

    Args:
        environment: environment variables (default: those of this process).

    Returns:
        Names to values as Slurm wrote them; empty outside a job.
    """
    environment = os.environ if environment is None else environment
    return {name: environment[variable] for name, variable in _VARIABLES.items() if variable in environment}


def read_attempt(environment: Mapping[str, str] | None = None) -> tuple[str, int] | None:
    """Return the id of this process's job as Slurm shows it, and the number of its restarts; ``None`` outside a job.

    Args:
        environment: environment variables (default: those of this process).
    """
    job = read_job_environment(environment)
    if "job" not in job:
        return None
    shown = f"{job['array_job']}_{job['array_task']}" if {"array_job", "array_task"} <= job.keys() else job["job"]
    return shown, int(job.get("restarts", 0))
