"""Scoring on Ray Data: numbers of parts go out, and workers write the parts to the shared file system.

Nothing but numbers and reasons travels through Ray. If a node is lost, Ray gives its numbers to others; a worker skips what is
written already, and what two have written is the same.
"""

import logging
import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vigil_data.errors import Failure, UserError
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.scoring.job_spec import Rows
from vigil_serving.scoring.local_executor import score_parts
from vigil_serving.scoring.shards import Parts

BLOCKS = 2048
"""Tasks that the parts are shared out into at most: Ray keeps each of them in mind."""
TRIES = 5
"""Workers that may die over one part."""
STORE = 100 << 20
"""Bytes of shared memory for a cluster of its own: hardly anything travels."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker must know.

    Attributes:
        bundle: the bundle's absolute path.
        parts: where parts go, and the plan.
        threads: of one worker, which are also the processors that it asks of Ray.
    """

    bundle: Path
    parts: Parts
    threads: int


class Worker:
    """One process that loads the bundle once and writes parts.

    Args:
        job: what is scored.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._loaded: tuple[Scorer, Rows] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Write parts that are not there yet.

        Args:
            batch: ``part``: numbers of parts.

        Returns:
            The numbers, and beside each why it could not be written; an empty reason if it was. An exception would reach the user
            as pages of Ray's own.
        """
        numbers = [int(number) for number in batch["part"]]
        reason = ""
        try:
            for number in numbers:
                self._write(number)
        except (UserError, Failure) as error:
            reason = str(error).splitlines()[0]
        except Exception as error:
            logging.getLogger(__name__).exception("parts %s", numbers)  # in the log of Ray's worker
            reason = f"{self._job.parts.folder}: part {numbers[0]}: {type(error).__name__}: {error}".splitlines()[0]
        return {"part": np.array(numbers, np.int64), "reason": np.array([reason] * len(numbers), object)}

    def _write(self, number: int) -> None:
        parts = self._job.parts
        if parts.is_whole(number):
            return
        tries = parts.folder / f".{number:08d}.tries.partial"
        with counted(
            tries, f"{parts.file(number)}: {TRIES} workers were lost over it; is there memory for its items? Try --chunk"
        ):
            if self._loaded is None:
                self._loaded = self._load()
            scorer, rows = self._loaded
            for _ in score_parts(parts, [number], scorer, rows):
                pass

    def _load(self) -> tuple[Scorer, Rows]:
        plan = self._job.parts.plan
        scorer = Scorer(self._job.bundle, self._job.threads, variant=plan.variant)
        if scorer.bundle.digest != plan.bundle:
            raise Failure(f"{self._job.bundle}: is another bundle on a node than where the command was started")
        return scorer, plan.open()


@contextmanager
def counted(file: Path, reason: str) -> Iterator[None]:
    """Note in a file that something is tried, until it ends in any way but the death of the process.

    Ray gives the work of a lost worker to the next one without end, and some items may be what ends their workers.

    Args:
        file: a byte for each try.
        reason: what is said of too many.

    Raises:
        Failure: if all of :data:`TRIES` have died.
    """
    try:
        with file.open("ab") as opened:
            if opened.tell() >= TRIES:
                raise Failure(reason)
            opened.write(b"x")
    except OSError as error:
        raise Failure(f"{file}: cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def score_on_ray(job: Job, numbers: Sequence[int], address: str | None, workers: int | None) -> Iterator[int]:
    """Score parts on a cluster.

    Args:
        job: what is scored.
        numbers: which parts.
        address: of the cluster; if ``None``, that in ``RAY_ADDRESS``, or a new one on this machine.
        workers: processes that score; as many as the cluster has room for if ``None``.

    Yields:
        The number of each part that is written.

    Raises:
        UserError: if Ray is not installed or the cluster is not there.
        Failure: if a part cannot be scored, or Ray gives up.
    """
    with _connected(address) as ray:
        nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        if job.threads > max(nodes):
            raise UserError(f"--threads {job.threads}: the largest node of the cluster has {max(nodes)} processors")
        room = sum(processors // job.threads for processors in nodes)
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers or room, len(numbers)))
        given = ray.data.from_items([{"part": number} for number in numbers], override_num_blocks=min(len(numbers), BLOCKS))
        results = given.map_batches(Worker, fn_constructor_args=(job,), batch_size=None, compute=pool, num_cpus=job.threads)
        try:
            for row in results.iter_rows():
                if row["reason"]:
                    raise Failure(str(row["reason"]))
                yield int(row["part"])
        except ray.exceptions.RayError as error:
            last = [line for line in str(error).splitlines() if line.strip()][-1:]
            raise Failure(f"Ray has given up: {type(error).__name__}: {''.join(last).strip()}; whole parts are kept") from None


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster or to one of its own; a connection that was there before is used and left."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no report leaves the machine
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its own errors are told below, in one line
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError:
        raise UserError("--engine ray: Ray is not installed; pip install 'vigil[ray]'") from None
    own = not ray.is_initialized()
    if own:
        address = address or os.environ.get("RAY_ADDRESS")
        _refuse_silent(address)
        alone = {"address": "local", "include_dashboard": False, "object_store_memory": STORE}
        settings: dict[str, Any] = {"address": address} if address else alone
        try:
            with warnings.catch_warnings():
                # Ray forks only to become another program, which touches no dataset.
                warnings.filterwarnings("ignore", message="lance is not fork-safe")
                ray.init(logging_level=logging.ERROR, log_to_driver=False, **settings)
        except (ConnectionError, ValueError, RuntimeError) as error:
            said = str(error).splitlines()[0]
            if not address:
                raise Failure(f"Ray cannot be started on this machine: {said}") from None
            raise UserError(f"--ray-address {address}: no cluster answers: {said}") from None
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield ray
    finally:
        logger.setLevel(level)
        context.enable_progress_bars = bars
        if own:
            ray.shutdown()


def _refuse_silent(address: str | None) -> None:
    """Refuse an address where nothing listens: Ray itself would try for some minutes."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if not port.isdecimal():  # none, or "auto"
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--ray-address {address}: no cluster answers: {error}") from None
