"""``vigil score``: every item of a dataset through a bundle, into one Parquet table; torch is never imported."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vigil_data.dataset import Dataset
from vigil_data.errors import UserError
from vigil_serving import bundle as bundles
from vigil_serving.runtime import Decision, Scorer

CHUNK = 256


@dataclass(frozen=True, slots=True)
class Scored:
    """What was scored.

    Attributes:
        items: how many.
        errors: those that could not be decoded.
        decided: label to the number of items that were decided to be it.
        actions: action to the number of items that the policy gives it; empty without a policy.
    """

    items: int
    errors: int
    decided: dict[str, int]
    actions: dict[str, int]


def score(
    bundle_path: Path,
    dataset_path: Path,
    to: Path,
    *,
    split: str | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scored:
    """Score a dataset's items in row order; the table appears under its name only when it is complete.

    Columns: ``id``; ``probability.LABEL`` (calibrated, float32) and ``decision.LABEL`` boolean, null where the item could not be
    decoded; where the bundle has a policy ``action``, ``review`` and ``reasons`` (label, action, probability and threshold of
    each, the decisive one first); ``presence``; ``cut``, the segments beyond the bundle's limits that were left out; ``error``,
    the reason of an undecodable item.

    Args:
        bundle_path: the bundle; its hashes are recomputed first.
        dataset_path: the Lance dataset.
        to: the Parquet file.
        split: score only this split.
        threads: see :func:`vigil_serving.runtime.open_session`.
        progress: called with the items done and the items in all.

    Raises:
        UserError: if the bundle was altered, or dataset, split or output file are not usable.
    """
    if to.is_dir():
        raise UserError(f"{to} is a folder; name the Parquet file to write")
    digest = bundles.check_files(bundle_path)
    dataset = Dataset(dataset_path)
    rows = dataset.rows(split)
    scorer = Scorer(bundle_path, threads)
    labels = scorer.bundle.signature.labels
    policy = scorer.bundle.policy
    lineage = {"vigil.bundle": digest, "vigil.dataset": str(dataset_path), "vigil.dataset_version": str(dataset.version)}
    if policy is not None:
        lineage |= {"vigil.policy": f"{policy.name} version {policy.version}", "vigil.policy_digest": policy.digest}
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(f".{to.name}.{os.getpid()}.partial")
    errors, decided, actions = 0, dict.fromkeys(labels, 0), dict.fromkeys(policy.actions if policy else (), 0)
    schema = _schema(labels, policy is not None)
    try:
        with pq.ParquetWriter(partial, schema.with_metadata(lineage)) as writer:
            for start in range(0, len(rows), CHUNK):
                decisions = scorer.score(dataset.take(rows[start : start + CHUNK]))
                writer.write_table(_table(decisions, labels, schema))
                errors += sum(decision.error is not None for decision in decisions)
                for label in (label for decision in decisions for label in decision.labels):
                    decided[label] += 1
                for action in (decision.action for decision in decisions if decision.action is not None):
                    actions[action] += 1
                if progress:
                    progress(min(start + CHUNK, len(rows)), len(rows))
        partial.replace(to)
    finally:
        partial.unlink(missing_ok=True)
    return Scored(len(rows), errors, decided, actions)


def _schema(labels: Sequence[str], acts: bool) -> pa.Schema:
    reason = [("label", pa.string()), ("action", pa.string()), ("probability", pa.float32()), ("threshold", pa.float32())]
    policy = [("action", pa.string()), ("review", pa.bool_()), ("reasons", pa.list_(pa.struct(reason)))]
    return pa.schema(
        [("id", pa.string())]
        + [(f"probability.{label}", pa.float32()) for label in labels]
        + [(f"decision.{label}", pa.bool_()) for label in labels]
        + (policy if acts else [])
        + [("presence", pa.string()), ("cut", pa.int32()), ("error", pa.string())]
    )


def _table(decisions: Sequence[Decision], labels: Sequence[str], schema: pa.Schema) -> pa.Table:
    columns: dict[str, list[object]] = {"id": [decision.id for decision in decisions]}
    for label in labels:
        columns[f"probability.{label}"] = [decision.probabilities.get(label) for decision in decisions]
        columns[f"decision.{label}"] = [None if decision.error else label in decision.labels for decision in decisions]
    if "action" in schema.names:
        columns["action"] = [decision.action for decision in decisions]
        columns["review"] = [None if decision.error else decision.review for decision in decisions]
        columns["reasons"] = [None if decision.error else [asdict(r) for r in decision.reasons] for decision in decisions]
    columns["presence"] = [None if decision.error else decision.presence for decision in decisions]
    columns["cut"] = [decision.cut for decision in decisions]
    columns["error"] = [decision.error for decision in decisions]
    return pa.Table.from_pydict(columns, schema=schema)
