"""Scoring on Ray Data: Ray distributes shard numbers, and workers write the shards to the shared file system.

Only numbers and error messages travel through Ray. If a node is lost, Ray gives its numbers to other workers; a worker skips
shards that exist, and a shard that is written twice has the same content.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vigil_data.errors import Failure, UserError
from vigil_data.filesystem import write_failure
from vigil_data.parallel.ray_cluster import connected
from vigil_serving.bundle.policy_text import PolicyText
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.scoring.job_spec import JobSpec, SelectedRows
from vigil_serving.scoring.local_executor import score_shards
from vigil_serving.scoring.shards import Shards

MAX_RAY_BLOCKS = 2048
"""Maximum number of tasks, since Ray holds all of them in memory."""
MAX_WORKER_LOSSES = 5
"""Workers that may die while scoring one shard."""


@dataclass(frozen=True, slots=True)
class WorkerJob:
    """Arguments of a worker.

    Attributes:
        bundle: absolute path of the bundle.
        shards: the shards of the job.
        threads: threads of one worker, and the number of CPUs that it requests from Ray.
        policy_text: policy texts that a guard reads in place of the bundle's.
    """

    bundle: Path
    shards: Shards[JobSpec]
    threads: int
    policy_text: PolicyText | None = None


class ShardWorker:
    """Process that loads the bundle once and writes shards.

    Args:
        job: arguments of the worker.
    """

    def __init__(self, job: WorkerJob) -> None:
        self._job = job
        self._loaded: tuple[Scorer, SelectedRows] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Write the shards that are missing or damaged.

        Args:
            batch: shard numbers under ``shard``.

        Returns:
            The numbers, and for each an error message, empty on success. An exception would reach the user as pages of Ray's
            own tracebacks.
        """
        numbers = [int(number) for number in batch["shard"]]
        reason = ""
        try:
            for number in numbers:
                self._write(number)
        except (UserError, Failure) as error:
            reason = str(error).splitlines()[0]
        except Exception as error:
            logging.getLogger(__name__).exception("shards %s", numbers)  # in the log of the Ray worker
            reason = f"{self._job.shards.folder}: shard {numbers[0]}: {type(error).__name__}: {error}".splitlines()[0]
        return {"shard": np.array(numbers, np.int64), "reason": np.array([reason] * len(numbers), object)}

    def _write(self, number: int) -> None:
        shards = self._job.shards
        if shards.is_complete(number):
            return
        attempts = shards.folder / f".{number:08d}.attempts.partial"
        with count_attempts(
            attempts, f"{shards.file(number)}: {MAX_WORKER_LOSSES} workers died while scoring it; try a smaller --chunk"
        ):
            if self._loaded is None:
                self._loaded = self._load()
            scorer, rows = self._loaded
            for _ in score_shards(shards, [number], scorer, rows):
                pass

    def _load(self) -> tuple[Scorer, SelectedRows]:
        spec = self._job.shards.job
        scorer = Scorer(self._job.bundle, self._job.threads, variant=spec.variant, policy_text=self._job.policy_text)
        if scorer.bundle.digest != spec.bundle:
            raise Failure(f"{self._job.bundle}: a worker's node has another bundle there; use a shared file system")
        return scorer, spec.open()


@contextmanager
def count_attempts(file: Path, reason: str) -> Iterator[None]:
    """Record an attempt in a file until the block ends; the record of a process that died stays.

    Ray retries the work of a lost worker without limit, although the items themselves may be what kills workers.

    Args:
        file: has a byte for each attempt.
        reason: error message after too many attempts.

    Raises:
        Failure: if :data:`MAX_WORKER_LOSSES` processes have died.
    """
    try:
        with file.open("ab") as opened:
            if opened.tell() >= MAX_WORKER_LOSSES:
                raise Failure(reason)
            opened.write(b"x")
    except OSError as error:
        raise write_failure(file, error) from None
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def score_on_ray(job: WorkerJob, numbers: Sequence[int], address: str, workers: int | None) -> Iterator[int]:
    """Score shards on a cluster.

    Args:
        job: arguments of the workers.
        numbers: shards to score.
        address: see :func:`.connected`.
        workers: number of workers (default: as many as the cluster has room for).

    Yields:
        The number of each written shard.

    Raises:
        UserError: if Ray is not installed or no cluster answers.
        Failure: if a shard cannot be scored, or Ray fails.
    """
    with connected(address) as cluster:
        import ray.data

        nodes = cluster.cpus()
        if job.threads > max(nodes):
            raise UserError(f"--threads {job.threads}: the largest node of the cluster has {max(nodes)} CPUs")
        room = sum(cpus // job.threads for cpus in nodes)
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers or room, len(numbers)))
        given = ray.data.from_items(
            [{"shard": number} for number in numbers], override_num_blocks=min(len(numbers), MAX_RAY_BLOCKS)
        )
        results = given.map_batches(ShardWorker, fn_constructor_args=(job,), batch_size=None, compute=pool, num_cpus=job.threads)
        try:
            with _quiet(ray):
                for row in results.iter_rows():
                    if row["reason"]:
                        raise Failure(str(row["reason"]))
                    yield int(row["shard"])
        except ray.exceptions.RayError as error:
            last = [line for line in str(error).splitlines() if line.strip()][-1:]
            raise Failure(f"Ray failed: {type(error).__name__}: {''.join(last).strip()}; finished shards are kept") from None


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Let Ray Data print neither bars nor errors, which are reported in one line."""
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        context.enable_progress_bars = bars
