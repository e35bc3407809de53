"""Watchdog: writes the stacks of all ranks and ends them when training hangs; also reports which rank is slow."""

import faulthandler
import logging
import os
import platform
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vigil_training.distributed.preemption import REQUEUE_STATUS

log = logging.getLogger("vigil.ranks")

STACK_DUMP_SECONDS = 10.0
"""Time for all ranks to write their stacks before they end."""

WINDOW_STEPS = 50
SLOW_RATIO = 1.5
SLOW_SECONDS = 0.05
"""A rank is slow if over the window its part of a step takes this many times as long as the others', and this much longer."""


class Watchdog:
    """Writes the stacks of the process and ends it if there is no progress for some time.

    A rank that waits in a collective cannot raise an exception, so a separate thread checks the clock. The first rank that
    times out makes the file ``hung``, at which all ranks write their stacks; the rank whose stack differs from the others' is
    the cause. The exit status asks for a requeue: a collective hangs most often because a machine is lost, and requeues are
    bounded.

    Args:
        timeout: seconds without a :meth:`beat`; ``None`` for no limit.
        rank: rank of this process.
    """

    def __init__(self, timeout: float | None, rank: int) -> None:
        self._timeout = timeout
        self._rank = rank
        self._last_event = "start"
        self._last_beat = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="vigil-watchdog", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def start(self, stacks: Path) -> None:
        """Start to watch.

        Args:
            stacks: folder for ``rank-N.txt``, specific to this start of the run, since an older one may still hang elsewhere.
        """
        self._stacks = stacks
        self._last_beat = time.monotonic()
        if self._timeout is not None:
            self._thread.start()

    def beat(self, event: str) -> None:
        """Report progress.

        Args:
            event: what was done; the file of stacks names the last one.
        """
        self._last_event, self._last_beat = event, time.monotonic()

    def _watch(self) -> None:
        assert self._timeout is not None
        pause = min(1.0, self._timeout / 10)
        while not self._ended.wait(pause):
            silent = time.monotonic() - self._last_beat
            if silent > self._timeout or self._another_rank_timed_out():
                # The disk itself may hang, so a thread writes and the end does not wait for it.
                threading.Thread(target=self._write_stacks, args=(silent,), daemon=True).start()
                if not self._ended.wait(min(STACK_DUMP_SECONDS, self._timeout)):
                    os._exit(REQUEUE_STATUS)

    def _another_rank_timed_out(self) -> bool:
        try:
            return (self._stacks / "hung").exists()
        except OSError:
            return False

    def _write_stacks(self, silent: float) -> None:
        path = self._stacks / f"rank-{self._rank}.txt"
        self._stacks.mkdir(parents=True, exist_ok=True)
        (self._stacks / "hung").touch()
        with path.open("w") as file:
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            file.write(
                f"rank {self._rank} on {platform.node()}, {now}: no progress since {self._last_event}, {silent:.0f} s ago\n\n"
            )
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        log.warning("hung: no progress since %s, %.0f s ago; the stacks are in %s", self._last_event, silent, path)


class StepTimes:
    """Time of each rank's own part of a step: a rank that is slower than the others delays all of them.

    Args:
        ranks: number of ranks.
        logs: whether this process logs a slow rank.
    """

    def __init__(self, ranks: int, logs: bool = True) -> None:
        self._logs = logs
        self._seconds: list[NDArray[np.float64]] = []
        self._ranks = ranks

    def add(self, seconds: NDArray[np.float64]) -> dict[str, float]:
        """Add one step, and return the metrics to record: medians over the last steps; empty with one rank.

        Args:
            seconds: time of each rank, ``[ranks]``.
        """
        if self._ranks == 1:
            return {}
        self._seconds = [*self._seconds[-WINDOW_STEPS + 1 :], seconds]
        by_rank = np.median(self._seconds, axis=0)
        slowest = int(by_rank.argmax())
        typical = float(np.median(np.delete(by_rank, slowest)))
        excess = by_rank[slowest] - typical
        if self._logs and len(self._seconds) == WINDOW_STEPS and excess > max(SLOW_SECONDS, (SLOW_RATIO - 1) * typical):
            log.warning("rank %d is slow: %.3f s a step of its own, the others %.3f s", slowest, by_rank[slowest], typical)
            self._seconds = []
        return {
            "ranks/step_seconds_min": float(by_rank.min()),
            "ranks/step_seconds_median": float(np.median(by_rank)),
            "ranks/step_seconds_max": float(by_rank[slowest]),
            "ranks/slowest_rank": float(slowest),
        }
