"""Rank and world size of this process: from srun, from a launcher, or a single process."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from vigil_data.errors import UserError


@dataclass(frozen=True, slots=True)
class World:
    """Position of a process among the ranks of a run.

    Attributes:
        rank: global rank, from 0.
        size: number of ranks.
        local_rank: rank within this machine.
        local_size: ranks on each machine.
        address: address of rank 0's machine.
        port: port on which rank 0 accepts the others.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return self.size // self.local_size

    @property
    def node_rank(self) -> int:
        """Index of this machine."""
        return self.rank // self.local_size

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the files that are written once."""
        return self.rank == 0


def find_world(environment: Mapping[str, str] | None = None) -> World | None:
    """Return the position that a launcher gave this process, or ``None`` without a launcher.

    Two kinds of launchers are supported: srun, whose steps have ``SLURM_STEP_NUM_TASKS`` and ``SLURM_PROCID`` (srun(1), "OUTPUT
    ENVIRONMENT VARIABLES"), and those that set ``RANK`` and ``WORLD_SIZE``, as torchrun and
    :mod:`vigil_training.distributed.launch` do. Several processes also need ``MASTER_ADDR`` and ``MASTER_PORT``.

    Raises:
        UserError: if a variable is missing or invalid.
    """
    env = os.environ if environment is None else environment
    if "RANK" in env and "WORLD_SIZE" in env:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    elif env.get("SLURM_STEP_ID", "").isdigit() and "SLURM_PROCID" in env:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")
    else:
        return None
    rank, size = _number(env, names[0]), _number(env, names[1])
    local_rank = _number(env, names[2]) if size > 1 else 0
    local_size = _number(env, names[3]) if size > 1 else 1
    if not 0 <= rank < size or not 0 <= local_rank < local_size:
        raise UserError(f"rank {rank} of {size}, local rank {local_rank} of {local_size}: out of range; see {', '.join(names)}")
    if size % local_size:
        raise UserError(f"{size} processes cannot be {local_size} on each machine; see {names[1]} and {names[3]}")
    if size == 1:
        return World()
    return World(
        rank, size, local_rank, local_size, env.get("MASTER_ADDR") or _missing("MASTER_ADDR"), _number(env, "MASTER_PORT")
    )


def _number(env: Mapping[str, str], name: str) -> int:
    text = env.get(name) or _missing(name)
    try:
        return int(text)
    except ValueError:
        raise UserError(f"environment variable {name}: must be a number, not {text!r}") from None


def _missing(name: str) -> str:
    raise UserError(f"several processes were launched without the variable {name}; `vigil submit` and torchrun set it")
