"""Schema of the output table, and decisions as its rows."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from vigil_data.filesystem import sha256_json
from vigil_serving.bundle.load import Bundle
from vigil_serving.runtime.decisions import Decision
from vigil_serving.traffic.schema import REASON

_NAME = pa.dictionary(pa.int32(), pa.string())
_SEGMENT = [
    ("modality", pa.string()),
    ("index", pa.int32()),
    ("start", pa.float64()),
    ("stop", pa.float64()),
    ("role", pa.string()),
    ("time", pa.list_(pa.float64(), 2)),
]
_EVIDENCE = pa.struct([("label", pa.string()), *_SEGMENT, ("weight", pa.float32())])
_SPAN = pa.struct(
    [
        ("label", pa.string()),
        ("index", pa.int32()),
        ("start", pa.int32()),
        ("stop", pa.int32()),
        ("probability", pa.float32()),
    ]
)
_TRUNCATED = pa.struct([*_SEGMENT, ("tokens", pa.int32())])


def output_schema(bundle: Bundle) -> pa.Schema:
    """Return the columns for a bundle's decisions, without metadata."""
    labels = bundle.metadata.labels
    guard: list[tuple[str, pa.DataType]] = []
    if bundle.prompt is not None:
        guard = [
            ("truncated", pa.list_(_TRUNCATED)),
            ("not_evaluated", pa.list_(pa.string())),
            ("uncalibrated", pa.list_(pa.string())),
        ]
        guard += [(f"policy_text.{label}", _NAME) for label in labels]
    policy = [("action", pa.string()), ("review", pa.bool_()), ("reasons", pa.list_(REASON))]
    return pa.schema(
        [("id", pa.string())]
        + [(f"probability.{label}", pa.float32()) for label in labels]
        + [(f"decision.{label}", pa.bool_()) for label in labels]
        + (policy if bundle.policy else [])
        + [("evidence", pa.list_(_EVIDENCE)), ("presence", pa.string()), ("cut", pa.int32()), ("error", pa.string())]
        + ([("spans", pa.list_(_SPAN))] if bundle.spans else [])
        + guard
        + [("bundle", _NAME), ("policy", _NAME)]
    )


def schema_digest(schema: pa.Schema) -> str:
    """Return the SHA-256 of the columns' names and types."""
    return sha256_json([[field.name, str(field.type)] for field in schema])


def policy_title(bundle: Bundle) -> str | None:
    """Return name and version of the bundle's policy."""
    return None if bundle.policy is None else bundle.policy.title


def decisions_table(decisions: Sequence[Decision], bundle: Bundle) -> pa.Table:
    """Return a table with a row for each decision; columns are null where an item could not be decoded."""
    columns: dict[str, Any] = {"id": [decision.id for decision in decisions]}
    for label in bundle.metadata.labels:
        columns[f"probability.{label}"] = [decision.probabilities.get(label) for decision in decisions]
        columns[f"decision.{label}"] = [None if decision.error else label in decision.labels for decision in decisions]
    if bundle.policy is not None:
        columns["action"] = [decision.action for decision in decisions]
        columns["review"] = [None if decision.error else decision.review for decision in decisions]
        columns["reasons"] = [None if decision.error else [asdict(r) for r in decision.reasons] for decision in decisions]
    columns["evidence"] = [None if decision.error else _evidence(decision) for decision in decisions]
    columns["presence"] = [None if decision.error else decision.presence for decision in decisions]
    columns["cut"] = [decision.cut for decision in decisions]
    columns["error"] = [decision.error for decision in decisions]
    if bundle.spans:
        columns["spans"] = [None if decision.error else [asdict(span) for span in decision.spans] for decision in decisions]
    if bundle.prompt is not None:
        columns["truncated"] = [None if decision.error else _truncated(decision) for decision in decisions]
        columns["not_evaluated"] = [list(bundle.not_evaluated)] * len(decisions)
        columns["uncalibrated"] = [list(bundle.uncalibrated)] * len(decisions)
        columns |= {f"policy_text.{clause.label}": _repeated(clause.digest, len(decisions)) for clause in bundle.prompt.clauses}
    columns["bundle"] = _repeated(bundle.digest, len(decisions))
    columns["policy"] = _repeated(policy_title(bundle), len(decisions))
    return pa.Table.from_pydict(columns, schema=output_schema(bundle))


def _evidence(decision: Decision) -> list[dict[str, object]]:
    return [{"label": e.label, "modality": e.modality, **asdict(e.span), "weight": e.weight} for e in decision.evidence]


def _truncated(decision: Decision) -> list[dict[str, object]]:
    return [{"modality": t.modality, **asdict(t.span), "tokens": t.tokens} for t in decision.truncated]


def _repeated(value: str | None, times: int) -> pa.DictionaryArray:
    indices = pa.nulls(times, pa.int32()) if value is None else pa.array([0] * times, pa.int32())
    return pa.DictionaryArray.from_arrays(indices, pa.array([] if value is None else [value], pa.string()))
