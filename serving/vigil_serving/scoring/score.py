"""Batch scoring (``vigil score``): every item of a dataset through a bundle, each exactly once, into one table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vigil_data.errors import Failure
from vigil_data.filesystem import StrPath
from vigil_data.progress import ProgressCallback
from vigil_serving.bundle.load import Bundle, load_bundle
from vigil_serving.bundle.policy_text import PolicyText, with_policy_text
from vigil_serving.bundle.policy_text_file import read_policy_text
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.scoring.job_spec import JobSpec, SelectedRows, make_job_spec
from vigil_serving.scoring.local_executor import score_shards
from vigil_serving.scoring.log_shards import check_log, log_shards
from vigil_serving.scoring.merge_shards import DecisionCounts, check_output, check_shards, merge_shards
from vigil_serving.scoring.output_schema import output_schema, policy_title
from vigil_serving.scoring.shards import Shards
from vigil_serving.scoring.workdir import log_name, open_workdir, remove_workdir
from vigil_serving.traffic.options import TrafficLogOptions

CHUNK = 1024
"""Rows per shard: what a kill costs at most, for each process that scores."""


@dataclass(frozen=True, slots=True)
class ScoringSummary:
    """Counts over the output table.

    Attributes:
        items: number of items.
        errors: number of items that could not be decoded.
        decided: label to the number of items whose probability reaches its threshold.
        actions: action of the policy to its number of items; empty without a policy.
        not_evaluated: labels with a policy text that was not evaluated.
        uncalibrated: labels with a policy text that has no calibration.
        resumed: number of items that an earlier, interrupted run had scored.
    """

    items: int
    errors: int
    decided: dict[str, int]
    actions: dict[str, int]
    resumed: int
    not_evaluated: tuple[str, ...] = ()
    uncalibrated: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RayOptions:
    """How to score on Ray.

    Attributes:
        address: see :func:`vigil_data.parallel.ray_cluster.connected`.
        workers: number of workers (default: as many as the cluster has room for).
    """

    address: str
    workers: int | None = None


def score_dataset(
    bundle: StrPath,
    dataset: StrPath,
    to: StrPath,
    *,
    split: str | None = None,
    where: str | None = None,
    variant: str = "fp32",
    threads: int | None = None,
    chunk: int = CHUNK,
    ray: RayOptions | None = None,
    restart: bool = False,
    policy_text: StrPath | None = None,
    log: TrafficLogOptions | None = None,
    progress: ProgressCallback | None = None,
) -> ScoringSummary:
    """Score a dataset's items in row order; the table appears under its name when it is complete.

    An interrupted or killed job resumes from its shards, on either engine. docs/scoring.md describes the columns.

    Args:
        bundle: the bundle's folder; its hashes are checked.
        dataset: the dataset's folder; its latest version is scored.
        to: a Parquet file (.parquet) or a Lance table (.lance).
        split: score only this split.
        where: score only the rows of this SQL condition.
        variant: variant of the encoders.
        threads: threads within an operator (default: all cores; on Ray one).
        chunk: rows per shard.
        ray: score on Ray; bundle, dataset and output must be on a file system that all nodes share.
        restart: discard the shards of an interrupted job.
        policy_text: file of policy texts that a guard reads in place of the bundle's
            (:func:`vigil_serving.bundle.policy_text_file.read_policy_text`).
        log: also write the decisions into this traffic log, when the table is complete; its limits are not enforced.
        progress: called with the items done and the total.

    Returns:
        Counts over the table.

    Raises:
        UserError: if the bundle was altered; dataset, split, condition, variant or output cannot be used; another process writes
            the same output; or existing shards are of another job.
        Failure: if something cannot be read or written, or the shards do not match the dataset.
    """
    to = Path(to).absolute()
    report = progress or (lambda *_: None)
    check_output(to)
    loaded = load_bundle(Path(bundle).resolve())
    loaded.encoders(variant)
    texts = None if policy_text is None else read_policy_text(policy_text, loaded)
    if texts is not None:
        loaded = with_policy_text(loaded, texts)
    digest = None if texts is None else texts.digest
    job, rows = make_job_spec(loaded, dataset, split=split, where=where, variant=variant, chunk=chunk, policy_text=digest)
    if log is not None:
        check_log(log, rows.dataset)
    with open_workdir(to, job, restart=restart) as shards:
        missing = list(shards.missing())
        resumed = done = job.rows - sum(job.size(number) for number in missing)
        report("scoring", done, job.rows)
        for number in _score_missing(shards, missing, loaded, rows, texts, threads=threads, ray=ray):
            done += job.size(number)
            report("scoring", done, job.rows)
        counts = DecisionCounts(decided=dict.fromkeys(loaded.metadata.labels, 0))
        counts.actions = dict.fromkeys(loaded.policy.actions if loaded.policy else (), 0)
        check_shards(shards, rows, counts)
        merge_shards(shards, output_schema(loaded), table_metadata(loaded, job), to)
        if log is not None:
            log_shards(shards, rows, loaded, log, log_name(shards.folder))
        remove_workdir(shards.folder)
    return ScoringSummary(
        items=counts.items,
        errors=counts.errors,
        decided=counts.decided,
        actions=counts.actions,
        resumed=resumed,
        not_evaluated=loaded.not_evaluated,
        uncalibrated=loaded.uncalibrated,
    )


def _score_missing(
    shards: Shards[JobSpec],
    missing: Sequence[int],
    bundle: Bundle,
    rows: SelectedRows,
    texts: PolicyText | None,
    *,
    threads: int | None,
    ray: RayOptions | None,
) -> Iterator[int]:
    """Write the missing shards, and yield the number of each."""
    if not missing:
        return
    if ray is None:
        yield from score_shards(shards, missing, Scorer(bundle, threads, variant=shards.job.variant), rows)
        return
    from vigil_serving.scoring.ray_executor import WorkerJob, score_on_ray

    yield from score_on_ray(WorkerJob(bundle.path, shards, threads or 1, texts), missing, ray.address, ray.workers)
    if lost := [number for number in missing if not shards.file(number).exists()]:
        raise Failure(
            f"{shards.folder}: {len(lost)} shards written by workers are missing; use a file system that all nodes share"
        )


def table_metadata(bundle: Bundle, job: JobSpec) -> dict[str, str]:
    """Return the metadata of a table of decisions: what was scored, and with what."""
    metadata = {
        "vigil.bundle": bundle.digest,
        "vigil.variant": job.variant,
        "vigil.dataset": job.dataset,
        "vigil.dataset_version": str(job.version),
    }
    metadata |= {f"vigil.{name}": value for name in ("split", "where") if (value := getattr(job, name)) is not None}
    if job.policy_text is not None:
        metadata["vigil.policy_text"] = job.policy_text
    if bundle.policy is not None:
        metadata |= {"vigil.policy": str(policy_title(bundle)), "vigil.policy_digest": bundle.policy.digest}
    return metadata
