"""Launching ranks, their exit status, exchange between ranks, the watchdog, and the checks before training."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from vigil_data.errors import UserError
from vigil_training.distributed.launch import combine_statuses
from vigil_training.distributed.preemption import Preemption
from vigil_training.distributed.preflight import find_problems
from vigil_training.distributed.watchdog import WINDOW_STEPS, StepTimes
from vigil_training.distributed.world import World, find_world

LAUNCH = """
import sys
from vigil_training.distributed.launch import launch
sys.exit(launch(int(sys.argv[1]), sys.argv[3:], float(sys.argv[2])))
"""
SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS_PER_NODE": "4",
}
HINT = "free some space or name another folder with --run"
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


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([0, 0], 0),
        ([85, 85], 85),
        ([85, -9], 85),
        ([-9, 0], 85),
        ([-15, -15], 85),
        ([-11, 85], 1),
        ([-2, -2], 130),
        ([-6, 85], 85),
        ([85, 1], 1),
        ([-9, 1], 1),
        ([1, 2], 2),
        ([130, 85], 130),
        ([85, 77], 1),
    ],
)
def test_combine_statuses(statuses, expected):
    assert combine_statuses(statuses) == combine_statuses(statuses[::-1]) == expected


@pytest.fixture
def launched():
    """Start ranks that run a script; kill those that remain at the end."""
    started = []

    def launched(script, processes=2, grace=5.0, **arguments):
        command = [sys.executable, "-c", LAUNCH, str(processes), str(grace), sys.executable, "-c", textwrap.dedent(script)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **arguments))
        return started[-1]

    yield launched
    for process in started:
        process.kill()
        process.communicate()


WAITING = """
    import os, signal, sys, time
    names = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda n, f: (os.write(1, f"{os.environ['RANK']} {n}\\n".encode()), os._exit(85)))
    os.write(1, f"pid {os.getpid()}\\n".encode())
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_launch_forwards_signals_to_every_rank(name, launched):
    process = launched(WAITING)
    assert [process.stdout.readline()[:3] for _ in range(2)] == ["pid", "pid"]
    process.send_signal(getattr(signal, name))
    output, _ = process.communicate(timeout=30)
    number = int(getattr(signal, name))
    assert sorted(output.split("\n")[:-1]) == [f"0 {number}", f"1 {number}"]
    assert process.returncode == 85


def test_launch_killed_ends_its_ranks(launched):
    process = launched(WAITING)
    pids = [int(process.stdout.readline().split()[1]) for _ in range(2)]
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_launch_ends_ranks_that_outlive_a_failure(launched):
    script = """
        import os, signal, sys, time
        if os.environ["RANK"] == "1":
            sys.exit(1)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    """
    process = launched(script, grace=0.3)
    process.communicate(timeout=30)
    assert process.returncode == 1


def test_preemption_records_the_first_signal_and_restores_handlers():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with Preemption() as preemption:
        assert preemption.asked is None
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert preemption.asked == "SIGTERM"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


RANK = """
    import os, sys, time
    from datetime import timedelta
    from pathlib import Path
    import torch.distributed as dist
    from vigil_data.errors import UserError
    from vigil_training.distributed.rank_group import RankGroup
    from vigil_training.distributed.watchdog import Watchdog
    from vigil_training.distributed.world import find_world

    world, folder = find_world(), Path(os.environ["FOLDER"])
    dist.init_process_group("gloo", init_method=f"tcp://{world.address}:{world.port}", rank=world.rank, world_size=world.size)
    ranks = RankGroup(world, timedelta(seconds=60))
    assert ranks.gather([world.rank, 7]).tolist() == [[0, 7], [1, 7]]
    assert ranks.gather_objects({"rank": world.rank}) == [{"rank": 0}, {"rank": 1}]
    assert ranks.run_on_rank_0(lambda: f"by {world.rank}") == "by 0"

    def refuse():
        raise UserError("wrong", "twice")

    try:
        ranks.run_on_rank_0(refuse)
    except UserError as error:
        assert error.everywhere
        assert str(error) == "wrong\\ntwice"
        (folder / f"refused-{world.rank}").touch()
    with Watchdog(2.0, world.rank) as watchdog:
        watchdog.start(folder / "stacks")
        watchdog.beat("step 3")

        def hanging_function():
            time.sleep(60)

        if world.rank:
            hanging_function()
        ranks.barrier()
"""


def test_rank_group_and_watchdog_on_two_ranks(tmp_path, launched):
    process = launched(RANK, env={**os.environ, "FOLDER": str(tmp_path), "OMP_NUM_THREADS": "1"})
    process.communicate(timeout=90)
    assert process.returncode == 85
    assert (tmp_path / "refused-0").exists()
    assert (tmp_path / "refused-1").exists()
    stacks = [(tmp_path / "stacks" / f"rank-{rank}.txt").read_text() for rank in range(2)]
    for rank, text in enumerate(stacks):
        assert text.startswith(f"rank {rank} on ")
        assert "no progress since step 3" in text.splitlines()[0]
    assert "in barrier" in stacks[0]
    assert "in hanging_function" in stacks[1]


def facts(rank, host, free=100.0, clock=0.0, **same):
    return {
        "rank": rank,
        "host": host,
        "same": {"torch": "2.14.1", "data": "version 3", **same},
        "free": free * 2**30,
        "clock": clock,
    }


def test_preflight_names_machines_and_ranks():
    four = [facts(rank, f"node-{rank // 2}") for rank in range(4)]
    assert find_problems(four, 0) == []
    other = [*four[:2], *(facts(rank, "node-1", torch="2.10.0", free=1) for rank in (2, 3)), facts(4, "node-2", clock=-100.0)]
    assert find_problems(other, 5 * 2**30) == [
        "node node-1 (rank 2, 3): torch: 2.10.0, the others 2.14.1",
        "node node-1 (rank 2, 3): 1.0 GiB are free for checkpoints that take 5.0 GiB; " + HINT,
        "node node-2 (rank 4): the clock differs by over 60 s from the others'; set the clocks by NTP",
    ]
    unreadable = [*four[:3], facts(3, "node-1", data="cannot be read: no such file")]
    on_no_rank = [facts(rank, "node-0", data="cannot be read: no such file") for rank in range(2)]
    assert find_problems(on_no_rank, 0) == ["node node-0 (rank 0, 1): data: cannot be read: no such file"]
    assert find_problems(unreadable, 0) == ["node node-1 (rank 3): data: cannot be read: no such file, the others version 3"]


def test_step_times_reports_a_slow_rank(caplog):
    times = StepTimes(4)
    found = {}
    for _ in range(WINDOW_STEPS):
        found = times.add(np.array([0.1, 0.1, 0.3, 0.11]))
    assert found["ranks/slowest_rank"] == 2
    assert found["ranks/step_seconds_slowest"] == pytest.approx(0.3)
    assert "rank 2 is slow" in caplog.text
    assert StepTimes(1).add(np.array([0.1])) == {}
    assert json.dumps(found)
