"""Number of decoding processes, chosen so that training does not wait for data (``data.workers: auto``).

The first batches are decoded in the training process, which times both sides. The order of rows does not depend on the choice.
"""

import math
import os
import statistics
from dataclasses import dataclass, field
from typing import Literal

WARM_UP_STEPS, TIMED_STEPS = 1, 4
"""Steps that are decoded in the training process: the first fills caches, and the others are timed."""

NEGLIGIBLE = 0.02
"""Share of a step's time that decoding may take without workers, and share of the time that may be waited for them."""

HEADROOM = 1.25
"""How much faster than training workers decode."""

MAX_EVALUATION_WORKERS = 8
MIN_BATCHES_PER_WORKER = 8
"""Batches of an evaluation for which a worker is started: a worker takes a second or more to start."""


def available_cores(local_ranks: int = 1) -> int:
    """Return the cores of this machine that one of its ranks may use, at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // local_ranks)


def choose_workers(decode_seconds: float, step_seconds: float, cores: int) -> int:
    """Return the number of workers with which decoding is faster than training, at most one for each core.

    Args:
        decode_seconds: time to read and decode a batch in one process.
        step_seconds: time of a training step without it.
        cores: cores of this rank.
    """
    if decode_seconds <= NEGLIGIBLE * step_seconds:
        return 0
    return min(cores, math.ceil(HEADROOM * decode_seconds / max(step_seconds, 1e-9)))


def evaluation_workers(workers: int | Literal["auto"], batches: int, local_ranks: int = 1) -> int:
    """Return the number of workers of an evaluation, whose forward passes alone are fast."""
    if workers != "auto":
        return workers
    return min(available_cores(local_ranks), MAX_EVALUATION_WORKERS, batches // MIN_BATCHES_PER_WORKER)


@dataclass
class WorkerChoice:
    """The choice of a run, made after its first steps and revised at the start of each epoch.

    Attributes:
        cores: cores of this rank.
        workers: the number chosen; ``None`` before the first steps are timed.
        reason: what it was chosen by, for the log.
    """

    cores: int
    workers: int | None = None
    reason: str = ""
    _decode: list[float] = field(default_factory=list)
    _step: list[float] = field(default_factory=list)

    def add(self, decode_seconds: float, step_seconds: float) -> None:
        """Add the times of a step, and choose if they are enough."""
        self._decode.append(decode_seconds)
        self._step.append(step_seconds)
        if len(self._step) == WARM_UP_STEPS + TIMED_STEPS:
            decode, step = (statistics.median(times[WARM_UP_STEPS:]) for times in (self._decode, self._step))
            self.workers = choose_workers(decode, step, self.cores)
            self.reason = f"a batch is decoded in {1e3 * decode:.3g} ms, a step takes {1e3 * step:.3g} ms"

    def revise(self, waiting: float) -> bool:
        """Take one more worker if the last epoch waited for data too long; return whether it did.

        Args:
            waiting: share of the time.
        """
        if self.workers is None or waiting <= NEGLIGIBLE or self.workers >= self.cores:
            return False
        self.workers += 1
        self.reason = f"the last epoch waited for data in {100 * waiting:.2g} % of the time"
        return True
