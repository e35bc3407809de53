"""Launching ranks: their signals, their end and their exit status."""

import signal
import time
from pathlib import Path

import pytest

from vigil_training.distributed.launch import combine_statuses


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
