"""Checks of machines and ranks before training."""

from vigil_training.distributed.preflight import find_problems

HINT = "free some space or name another folder with --run"


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
