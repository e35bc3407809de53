"""What Slurm says of the job that this process is in, for the record of a run."""

import os
from collections.abc import Mapping

_FACTS = {
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


def facts(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Facts about the job, from the variables that Slurm sets (sbatch(1), "OUTPUT ENVIRONMENT VARIABLES").

    Args:
        environment: the variables; those of this process if not given.

    Returns:
        Names to values as Slurm wrote them; empty outside a job.
    """
    environment = os.environ if environment is None else environment
    return {name: environment[variable] for name, variable in _FACTS.items() if variable in environment}
