"""When nothing goes on any more: where every rank is, and an end; and which rank is slow."""

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

log = logging.getLogger("vigil.ranks")

STATUS = 85
"""A collective hangs most often because a machine is lost, and the run goes on elsewhere; requeues are bounded."""

OTHERS_HAVE = 10.0
"""Seconds in which the other ranks write their stacks before a rank ends."""

WINDOW = 50
SLOW = 1.5
LATE = 0.05
"""A rank is slow if over WINDOW steps its own part takes SLOW times as long as the others', and LATE seconds longer."""


class Watchdog:
    """Ends the process, with its stacks written down, when for some time nothing has been done.

    A rank that waits in a collective cannot raise an exception, so a thread of its own looks at the clock. The first rank whose
    time is out leaves a file ``hung``, at which all of them write their stacks; the one that is elsewhere than the others is the
    cause.

    Args:
        timeout: seconds without :meth:`beat`; none for no limit.
        rank: of this process.
    """

    def __init__(self, timeout: float | None, rank: int) -> None:
        self._timeout = timeout
        self._rank = rank
        self._what = "start"
        self._beat = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="vigil-watchdog", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def start(self, stacks: Path) -> None:
        """Begin to watch.

        Args:
            stacks: folder for ``rank-N.txt``; of this start of the run alone, as an older one may still hang somewhere.
        """
        self._stacks = stacks
        self._beat = time.monotonic()
        if self._timeout is not None:
            self._thread.start()

    def beat(self, what: str) -> None:
        """Something is done.

        Args:
            what: named in the file of stacks.
        """
        self._what, self._beat = what, time.monotonic()

    def _watch(self) -> None:
        assert self._timeout is not None
        pause = min(1.0, self._timeout / 10)
        while not self._ended.wait(pause):
            silent = time.monotonic() - self._beat
            if silent > self._timeout or self._seen_by_another():
                # The disk may be what hangs: writing is given some time, and the end does not wait for it.
                threading.Thread(target=self._write, args=(silent,), daemon=True).start()
                if not self._ended.wait(min(OTHERS_HAVE, self._timeout)):
                    os._exit(STATUS)

    def _seen_by_another(self) -> bool:
        try:
            return (self._stacks / "hung").exists()
        except OSError:
            return False

    def _write(self, silent: float) -> None:
        path = self._stacks / f"rank-{self._rank}.txt"
        self._stacks.mkdir(parents=True, exist_ok=True)
        (self._stacks / "hung").touch()
        with path.open("w") as file:
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            file.write(f"rank {self._rank} on {platform.node()}, {now}: nothing since {self._what}, {silent:.0f} s ago\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        log.warning("hung: nothing since %s, %.0f s ago; where this rank is stands in %s", self._what, silent, path)


class StepTimes:
    """Each rank's own part of the steps: a rank that is slower than the others holds all of them up.

    Args:
        ranks: how many.
        says: whether this process logs it.
    """

    def __init__(self, ranks: int, says: bool = True) -> None:
        self._says = says
        self._seconds: list[NDArray[np.float64]] = []
        self._ranks = ranks

    def add(self, seconds: NDArray[np.float64]) -> dict[str, float]:
        """Note one step.

        Args:
            seconds: of each rank, ``[ranks]``.

        Returns:
            Numbers for the record: medians over the last steps. Empty with one rank.
        """
        if self._ranks == 1:
            return {}
        self._seconds = [*self._seconds[-WINDOW + 1 :], seconds]
        by_rank = np.median(self._seconds, axis=0)
        slowest = int(by_rank.argmax())
        typical = float(np.median(np.delete(by_rank, slowest)))
        late = by_rank[slowest] - typical
        if self._says and len(self._seconds) == WINDOW and late > max(LATE, (SLOW - 1) * typical):
            log.warning("rank %d is slow: %.3f s a step of its own, the others %.3f s", slowest, by_rank[slowest], typical)
            self._seconds = []
        return {
            "ranks/step_seconds_median": typical,
            "ranks/step_seconds_slowest": float(by_rank[slowest]),
            "ranks/slowest_rank": float(slowest),
        }
