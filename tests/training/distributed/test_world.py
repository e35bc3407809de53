"""Rank and size of the world, from the variables of srun and torchrun."""

import pytest

from vigil_data.errors import UserError
from vigil_training.distributed.world import World, find_world

SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS_PER_NODE": "4",
}
MASTER = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


def test_find_world_reads_srun_and_torchrun():
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", **MASTER}
    for environment in (SRUN | MASTER, torchrun, torchrun | SRUN | {"SLURM_PROCID": "0"}):
        world = find_world(environment)
        assert world == World(5, 8, 1, 4, "10.0.0.1", 29500)
        assert (world.nodes, world.node_rank, world.is_main) == (2, 1, False)


def test_find_world_without_a_launcher():
    assert find_world({}) is None
    assert find_world({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}) is None  # The batch script itself, or salloc.
    assert find_world({"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}) == World()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MASTER_ADDR": ""}, "without the variable MASTER_ADDR"),
        ({"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS: must be a number, not 'many'"),
        ({"SLURM_PROCID": "9"}, "rank 9 of 8, local rank 1 of 4: out of range"),
        ({"SLURM_NTASKS_PER_NODE": "0"}, "local rank 1 of 0: out of range"),
        ({"SLURM_STEP_NUM_TASKS": "7"}, "7 processes cannot be 4 on each machine"),
    ],
)
def test_find_world_refuses_incomplete_variables(changes, message):
    with pytest.raises(UserError, match=message):
        find_world(SRUN | MASTER | changes)
