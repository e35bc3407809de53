"""``vigil score``: every item of a dataset through a bundle, each exactly once, into one table; torch is never imported."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vigil_data.errors import Failure
from vigil_serving.bundle.load import Bundle, read_checked
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.scoring import workdir
from vigil_serving.scoring.job_spec import Plan, Rows, plan_of
from vigil_serving.scoring.local_executor import score_parts
from vigil_serving.scoring.merge_shards import Tally, check, join, refuse
from vigil_serving.scoring.output_schema import policy_of, schema_of
from vigil_serving.scoring.shards import Parts

CHUNK = 1024
"""Rows of a part: what a kill costs at most, for each process that scores."""

Progress = Callable[[int, int], None]
Say = Callable[[str], None]


def _silent(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Scored:
    """What was scored.

    Attributes:
        items: how many.
        errors: those that could not be decoded.
        decided: label to the number of items that were decided to be it.
        actions: action to the number of items that the policy gives it; empty without a policy.
        resumed: those of the items that an earlier, interrupted scoring had done.
    """

    items: int
    errors: int
    decided: dict[str, int]
    actions: dict[str, int]
    resumed: int


@dataclass(frozen=True, slots=True)
class OnRay:
    """How to score on Ray.

    Attributes:
        address: of the cluster; if ``None``, that in ``RAY_ADDRESS``, or a new one on this machine.
        workers: processes that score; as many as the cluster has room for if ``None``.
    """

    address: str | None = None
    workers: int | None = None


def score(
    bundle_path: Path,
    dataset_path: Path,
    to: Path,
    *,
    split: str | None = None,
    where: str | None = None,
    variant: str = "fp32",
    threads: int | None = None,
    chunk: int = CHUNK,
    ray: OnRay | None = None,
    restart: bool = False,
    progress: Progress = _silent,
    say: Say = _silent,
) -> Scored:
    """Score a dataset's items in row order; the table appears under its name only when it is complete.

    Started again after it was interrupted, it goes on with the parts that it had written, on whichever engine.
    docs/scoring.md says which columns there are.

    Args:
        bundle_path: the bundle; its hashes are recomputed first.
        dataset_path: the Lance dataset, of which the newest version is scored.
        to: a Parquet file (.parquet) or a Lance table (.lance).
        split: score only this split.
        where: score only the rows of this SQL condition.
        variant: of the encoders.
        threads: threads within an operator; all cores if ``None``, and on Ray one.
        chunk: rows of a part.
        ray: score on Ray; bundle, dataset and output must lie on a file system that all its nodes share.
        restart: throw away the parts of an interrupted scoring.
        progress: called with the items done and the items in all; first with those that were done before.
        say: called with a line for each part that was found damaged.

    Returns:
        Counts over the whole table.

    Raises:
        UserError: if the bundle was altered; dataset, split, condition, variant or output are not usable; another process writes
            the same output; or the parts that are there are of another scoring.
        Failure: if something cannot be read or written, or the parts are not what was scored.
    """
    to = to.absolute()
    refuse(to)
    bundle = read_checked(bundle_path.resolve())
    bundle.encoders(variant)
    plan, rows = plan_of(bundle, dataset_path, split=split, where=where, variant=variant, chunk=chunk)
    with workdir.opened(to, plan, restart=restart) as parts:
        missing = list(parts.missing(say))
        resumed = done = plan.rows - sum(plan.size(number) for number in missing)
        progress(done, plan.rows)
        for number in _scoring(parts, missing, bundle, rows, threads=threads, ray=ray):
            done += plan.size(number)
            progress(done, plan.rows)
        tally = Tally(decided=dict.fromkeys(bundle.signature.labels, 0))
        tally.actions = dict.fromkeys(bundle.policy.actions if bundle.policy else (), 0)
        check(parts, rows, tally)
        join(parts, schema_of(bundle), _lineage(bundle, plan), to)
        workdir.discard(parts.folder)
    return Scored(tally.items, tally.errors, tally.decided, tally.actions, resumed)


def _scoring(
    parts: Parts, missing: Sequence[int], bundle: Bundle, rows: Rows, *, threads: int | None, ray: OnRay | None
) -> Iterator[int]:
    """Write the missing parts, and give the number of each that is written."""
    if not missing:
        return
    if ray is None:
        yield from score_parts(parts, missing, Scorer(bundle, threads, variant=parts.plan.variant), rows)
        return
    from vigil_serving.scoring.ray_executor import Job, score_on_ray

    yield from score_on_ray(Job(bundle.path, parts, threads or 1), missing, ray.address, ray.workers)
    if lost := [number for number in missing if not parts.file(number).exists()]:
        raise Failure(
            f"{parts.folder}: {len(lost)} parts that Ray reports as written are not there; do all nodes share this folder?"
        )


def _lineage(bundle: Bundle, plan: Plan) -> dict[str, str]:
    lineage = {
        "vigil.bundle": bundle.digest,
        "vigil.variant": plan.variant,
        "vigil.dataset": plan.dataset,
        "vigil.dataset_version": str(plan.version),
    }
    lineage |= {f"vigil.{name}": value for name in ("split", "where") if (value := getattr(plan, name)) is not None}
    if bundle.policy is not None:
        lineage |= {"vigil.policy": str(policy_of(bundle)), "vigil.policy_digest": bundle.policy.digest}
    return lineage
