"""Start the ranks of one machine, and end as they did; on several machines srun or torchrun does so."""

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from types import FrameType

FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
REQUEUE = 85
"""Exit status of what wants to be started again."""

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_LIBC = ctypes.CDLL(None)


def launch(processes: int, command: Sequence[str], grace: float = 30.0) -> int:
    """Run a command as the ranks 0 to ``processes - 1`` of this machine.

    SIGTERM, SIGUSR1 and SIGINT are passed on. When a rank ends badly the others, which wait for it, have ``grace`` seconds to end
    by themselves. All of them end with this process, even if it is killed.

    Args:
        processes: how many.
        command: what each of them runs.
        grace: seconds from the first bad end to SIGTERM, and again to SIGKILL.

    Returns:
        The exit status, see :func:`worst`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    ranks: list[subprocess.Popen[bytes]] = []

    asked: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        asked.append(number)
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        parent = os.getpid()
        for rank in range(processes):
            own = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            # In a group of its own, so that a terminal's Ctrl-C comes once, by us.
            new = subprocess.Popen(command, env=own, process_group=0, preexec_fn=lambda: _end_with(parent))  # noqa: PLW1509, S603
            for number in asked:  # What came before it was started.
                new.send_signal(number)
            ranks.append(new)
        _wait(ranks, grace)
    finally:
        for rank_ in ranks:
            if rank_.poll() is None:
                rank_.kill()
                rank_.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    return worst([rank.returncode for rank in ranks])


def worst(statuses: Sequence[int]) -> int:
    """One exit status for several.

    A mistake (2) or failure (1) of any rank comes before all else, a crash of its own (such as SIGSEGV) among them, then Ctrl-C
    (130). A rank that was killed by another signal is lost, and if the others say nothing worse all can be started again (85).
    SIGABRT counts as lost: NCCL aborts a rank whose peer hangs. An unknown status is a failure.

    Args:
        statuses: exit statuses, negative for a signal, as :class:`subprocess.Popen` gives them.
    """
    known = {130 if status == -signal.SIGINT else 1 if -status in CRASHES else status for status in statuses}
    lost = any(status < 0 for status in known)
    known = {status for status in known if status >= 0}
    for status in (2, 1, 130):
        if status in known:
            return status
    if known - {0, REQUEUE}:
        return 1
    return REQUEUE if lost or REQUEUE in known else 0


def _wait(ranks: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """Until all have ended; ranks that outlive a bad end of another are ended."""
    deadline, stronger = float("inf"), [signal.SIGKILL, signal.SIGTERM]
    while None in (statuses := [rank.poll() for rank in ranks]):
        time.sleep(0.02)
        now = time.monotonic()
        if deadline == float("inf") and any(statuses):
            deadline = now + grace
        if now > deadline and stronger:
            number = stronger.pop()
            for rank in ranks:
                if rank.poll() is None:
                    rank.send_signal(number)
            deadline = now + grace


def _end_with(parent: int) -> None:
    """Ask the kernel, in a new rank, to kill it when its parent ends."""
    _LIBC.prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # It ended before the kernel was asked.
        os._exit(1)
