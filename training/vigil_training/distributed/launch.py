"""Start the ranks of one machine; on several machines srun or torchrun does so."""

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from types import FrameType

from vigil_training.distributed.preemption import REQUEUE_STATUS

FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)

_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None)


def launch(processes: int, command: Sequence[str], grace: float = 30.0) -> int:
    """Run a command as the ranks 0 to ``processes - 1`` of this machine.

    SIGTERM, SIGUSR1 and SIGINT are forwarded. When a rank fails, the others have ``grace`` seconds to end. All
    ranks end with this process, even if it is killed.

    Args:
        processes: number of ranks.
        command: command of each rank.
        grace: seconds from the first failure to SIGTERM, and again to SIGKILL.

    Returns:
        The exit status, see :func:`combine_statuses`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    ranks: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    former = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        parent = os.getpid()
        for rank in range(processes):
            own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            # In its own process group, so that a terminal's Ctrl-C arrives once, forwarded by this process.
            new = subprocess.Popen(command, env=own, process_group=0, preexec_fn=lambda: end_with(parent))  # noqa: PLW1509, S603
            for number in received:  # Signals that came before this rank was started.
                new.send_signal(number)
            ranks.append(new)
        _wait(ranks, grace)
    finally:
        for rank_ in ranks:
            if rank_.poll() is None:
                rank_.kill()
                rank_.wait()
        for number, handler in former.items():
            signal.signal(number, handler)
    return combine_statuses([rank.returncode for rank in ranks])


def combine_statuses(statuses: Sequence[int]) -> int:
    """Return one exit status for all ranks.

    The user's mistake (2) or a failure (1) of any rank takes precedence; a crash such as SIGSEGV is a failure. Ctrl-C (130)
    comes next. A rank killed by another signal is lost, and the run can be resumed (85). SIGABRT counts as lost: NCCL aborts a
    rank whose peer hangs. An unknown status is a failure.

    Args:
        statuses: exit statuses, negative for a signal, as in :class:`subprocess.Popen`.
    """
    known = {130 if status == -signal.SIGINT else 1 if -status in CRASHES else status for status in statuses}
    lost = any(status < 0 for status in known)
    known = {status for status in known if status >= 0}
    for status in (2, 1, 130):
        if status in known:
            return status
    if known - {0, REQUEUE_STATUS}:
        return 1
    return REQUEUE_STATUS if lost or REQUEUE_STATUS in known else 0


def _wait(ranks: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """Wait until all ranks have ended; after the grace, end those that outlive the failure of another."""
    deadline, signals = float("inf"), [signal.SIGKILL, signal.SIGTERM]
    while None in (statuses := [rank.poll() for rank in ranks]):
        time.sleep(0.02)
        now = time.monotonic()
        if deadline == float("inf") and any(statuses):
            deadline = now + grace
        if now > deadline and signals:
            number = signals.pop()
            for rank in ranks:
                if rank.poll() is None:
                    rank.send_signal(number)
            deadline = now + grace


def end_with(parent: int) -> None:
    """Have the kernel kill this new process when its parent ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # The parent ended before the call.
        os._exit(1)
