"""Ranks find each other, decide alike, are stopped together, and say where they are when they hang."""

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
from vigil_training.distributed.launch import worst
from vigil_training.distributed.preemption import Preemption
from vigil_training.distributed.preflight import _compare
from vigil_training.distributed.watchdog import WINDOW, StepTimes
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
MEND = "free some space or name another folder with --run"
MASTER = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


def test_the_place_of_a_process_is_read_from_srun_and_from_torchrun():
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", **MASTER}
    for environment in (SRUN | MASTER, torchrun, torchrun | SRUN | {"SLURM_PROCID": "0"}):
        world = find_world(environment)
        assert world == World(5, 8, 1, 4, "10.0.0.1", 29500)
        assert (world.nodes, world.node_rank, world.is_main) == (2, 1, False)


def test_a_process_that_nobody_launched_has_no_place():
    assert find_world({}) is None
    assert find_world({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}) is None  # The batch script itself, or salloc.
    assert find_world({"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}) == World()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MASTER_ADDR": ""}, "without the variable MASTER_ADDR"),
        ({"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS is 'many' and not a number"),
        ({"SLURM_PROCID": "9"}, "rank 9 of 8, 1 of 4 on its machine, cannot be"),
        ({"SLURM_NTASKS_PER_NODE": "0"}, "1 of 0 on its machine, cannot be"),
        ({"SLURM_STEP_NUM_TASKS": "7"}, "7 processes cannot be 4 on each machine"),
    ],
)
def test_an_incomplete_place_is_refused(changes, message):
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
def test_one_status_is_made_of_several(statuses, expected):
    assert worst(statuses) == worst(statuses[::-1]) == expected


@pytest.fixture
def launched():
    """Starts ranks that run a script; those that are left at the end are killed."""
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
def test_signals_reach_every_rank(name, launched):
    process = launched(WAITING)
    assert [process.stdout.readline()[:3] for _ in range(2)] == ["pid", "pid"]
    process.send_signal(getattr(signal, name))
    said, _ = process.communicate(timeout=30)
    number = int(getattr(signal, name))
    assert sorted(said.split("\n")[:-1]) == [f"0 {number}", f"1 {number}"]
    assert process.returncode == 85


def test_no_rank_outlives_its_launcher(launched):
    process = launched(WAITING)
    pids = [int(process.stdout.readline().split()[1]) for _ in range(2)]
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ranks_that_wait_for_one_that_failed_are_ended(launched):
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


def test_a_signal_is_noted_and_the_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with Preemption() as preemption:
        assert preemption.asked is None
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert preemption.asked == "SIGTERM"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


RANK = """
    import os, sys, time
    from pathlib import Path
    import torch.distributed as dist
    from vigil_data.errors import UserError
    from vigil_training.distributed.rank_group import RankGroup
    from vigil_training.distributed.watchdog import Watchdog
    from vigil_training.distributed.world import find_world

    world, folder = find_world(), Path(os.environ["FOLDER"])
    dist.init_process_group("gloo", init_method=f"tcp://{world.address}:{world.port}", rank=world.rank, world_size=world.size)
    ranks = RankGroup(world, 60)
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

        def the_rank_that_is_elsewhere():
            time.sleep(60)

        if world.rank:
            the_rank_that_is_elsewhere()
        ranks.barrier()
"""


def test_ranks_agree_and_a_hung_collective_shows_where_each_of_them_is(tmp_path, launched):
    process = launched(RANK, env={**os.environ, "FOLDER": str(tmp_path), "OMP_NUM_THREADS": "1"})
    process.communicate(timeout=90)
    assert process.returncode == 85
    assert (tmp_path / "refused-0").exists()
    assert (tmp_path / "refused-1").exists()
    stacks = [(tmp_path / "stacks" / f"rank-{rank}.txt").read_text() for rank in range(2)]
    for rank, text in enumerate(stacks):
        assert text.startswith(f"rank {rank} on ")
        assert "nothing since step 3" in text.splitlines()[0]
    assert "in barrier" in stacks[0]
    assert "in the_rank_that_is_elsewhere" in stacks[1]


def facts(rank, host, free=100.0, clock=0.0, **same):
    return {
        "rank": rank,
        "host": host,
        "same": {"torch": "2.14.1", "data": "version 3", **same},
        "free": free * 2**30,
        "clock": clock,
    }


def test_what_differs_is_named_with_its_machine():
    four = [facts(rank, f"node-{rank // 2}") for rank in range(4)]
    assert _compare(four, 0) == []
    other = [*four[:2], *(facts(rank, "node-1", torch="2.10.0", free=1) for rank in (2, 3)), facts(4, "node-2", clock=-100.0)]
    assert _compare(other, 5 * 2**30) == [
        "node node-1 (rank 2, 3): torch: 2.10.0, the others 2.14.1",
        "node node-1 (rank 2, 3): 1.0 GiB are free for checkpoints that take 5.0 GiB; " + MEND,
        "node node-2 (rank 4): the clock differs by over 60 s from the others'; set the clocks by NTP",
    ]
    unreadable = [*four[:3], facts(3, "node-1", data="cannot be read: no such file")]
    everywhere = [facts(rank, "node-0", data="cannot be read: no such file") for rank in range(2)]
    assert _compare(everywhere, 0) == ["node node-0 (rank 0, 1): data: cannot be read: no such file"]
    assert _compare(unreadable, 0) == ["node node-1 (rank 3): data: cannot be read: no such file, the others version 3"]


def test_a_slow_rank_is_shown(caplog):
    times = StepTimes(4)
    found = {}
    for _ in range(WINDOW):
        found = times.add(np.array([0.1, 0.1, 0.3, 0.11]))
    assert found["ranks/slowest_rank"] == 2
    assert found["ranks/step_seconds_slowest"] == pytest.approx(0.3)
    assert "rank 2 is slow" in caplog.text
    assert StepTimes(1).add(np.array([0.1])) == {}
    assert json.dumps(found)
