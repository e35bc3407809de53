"""Predictions of any model: read from a table of scores, or made with a run or a bundle.

Comparisons, policies and suites accept all three, so that a candidate and the model in production, Vigil's or another system's,
are evaluated in the same way.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vigil.workflows.model_source import SourceKind, source_kind
from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath
from vigil_data.progress import ProgressCallback
from vigil_evaluation.predictions import prediction_labels, read_predictions, scored_items

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from vigil_data.dataset.dataset import Dataset
    from vigil_data.taxonomy import Taxonomy
    from vigil_evaluation.policy.compiled_policy import CompiledPolicy
    from vigil_serving.runtime.scorer import Scorer
    from vigil_training.runs.run import Run

CHUNK_ROWS = 256
"""Rows that a bundle scores at once."""

FINGERPRINT_KEY = b"vigil.made_of"
"""Metadata key of a run's predictions.parquet; see :func:`predictions_fingerprint`."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """A predictions table and the properties of the model that made it.

    Attributes:
        name: the path of the source, as given.
        kind: ``table``, ``run`` or ``bundle``.
        table: see :mod:`vigil_evaluation.predictions`.
        labels: labels of the table, in the taxonomy's order where that is known.
        thresholds: label to the lowest flagged probability; 0.5 each for a table.
        taxonomy: taxonomy of the model; ``None`` for a table.
        policy: compiled policy of the run or bundle, if it has one.
        facts: provenance, as text.
    """

    name: str
    kind: SourceKind
    table: "pa.Table"
    labels: tuple[str, ...]
    thresholds: Mapping[str, float]
    taxonomy: "Taxonomy | None"
    policy: "CompiledPolicy | None"
    facts: Mapping[str, str]


def load_predictions(
    source: StrPath,
    *,
    data: StrPath | None = None,
    split: str | None = "test",
    columns: Sequence[str] = (),
    progress: ProgressCallback | None = None,
) -> Predictions:
    """Read the predictions of a table, or make those of a run or bundle.

    Args:
        source: a Parquet file of predictions, a run folder, or a bundle.
        data: the dataset to predict (default: the one that the run or bundle was trained on); not with a Parquet file.
        split: split of the dataset; all rows if ``None``. A Parquet file with a column ``split`` that contains this value is
            filtered by it.
        columns: columns of the dataset to copy, in addition to the standard ones.
        progress: called with ``predicting``, the items done and their number.

    Raises:
        UserError: if the source is none of these, or its dataset or split does not exist.
    """
    source, kind = Path(source), source_kind(source)
    if kind == "table":
        return _read_table(source, data, split)
    if kind == "run":
        return _load_run(source, data, split, columns, progress)
    return _load_bundle(source, data, split, columns, progress)


def score_rows(
    source: StrPath,
    data: "Dataset",
    rows: "NDArray[np.int64]",
    columns: Sequence[str],
    progress: ProgressCallback | None = None,
) -> Predictions:
    """Predict rows of a dataset with a run or a bundle; predictions in its folder are not reused.

    Args:
        source: a run folder or a bundle.
        data: the dataset.
        rows: row numbers, int64 ``[N]``.
        columns: columns of the dataset to copy, in addition to the standard ones.
        progress: called with ``predicting``, the items done and their number.
    """
    if source_kind(source) == "bundle":
        return _score_with_bundle(Path(source), data, rows, columns, progress)
    from vigil_training.runs.run import Run

    return _score_with_run(Run(source), data, rows, columns, progress)


def predictions_fingerprint(run: "Run", dataset: "Dataset", split: str) -> str:
    """Return a digest of everything that a run's predictions of a split depend on: rows, weights and calibration."""
    calibration = run.calibration.read_bytes() if run.calibration.is_file() else b""
    parts = (str(dataset.path.resolve()), str(dataset.version), split, str(run.checkpoint("best").resolve()))
    return sha256(json.dumps(parts).encode() + calibration).hexdigest()


def training_dataset(source: StrPath) -> tuple[str, int | None] | None:
    """Return path and version of the dataset that a run or bundle was trained on; ``None`` if they are not recorded."""
    dataset: Mapping[str, Any] = {}
    if (kind := source_kind(source)) == "bundle":
        from vigil_serving.bundle.load import load_bundle

        dataset = load_bundle(source, check_hashes=False).metadata.lineage.get("dataset", {})
    elif kind == "run":
        from vigil_training.runs.run import Run

        dataset = Run(source).read_environment().get("dataset", {})
    return (dataset["path"], dataset.get("version")) if "path" in dataset else None


def _read_table(source: Path, data: StrPath | None, split: str | None) -> Predictions:
    import pyarrow.compute as pc

    if data is not None:
        raise UserError(f"--data {data}: {source} is a table of predictions; leave --data out")
    table, failed = scored_items(read_predictions(source), str(source))
    if split is not None and "split" in table.column_names and pc.any(pc.equal(table.column("split"), split)).as_py():
        table = table.filter(pc.equal(table.column("split"), split))
    labels = prediction_labels(table)
    facts = {"predictions": str(source), "items": str(table.num_rows), **({"undecodable": str(failed)} if failed else {})}
    return Predictions(str(source), "table", table, labels, dict.fromkeys(labels, 0.5), None, None, facts)


def _load_run(
    source: Path, data: StrPath | None, split: str | None, columns: Sequence[str], progress: ProgressCallback | None
) -> Predictions:
    from vigil_data.dataset.dataset import Dataset
    from vigil_training.runs.run import Run

    run = Run(source)
    run.read_thresholds()
    dataset = Dataset(Path(data)) if data is not None else run.dataset()
    stored = _stored_table(run, dataset, split, columns) if data is None and split is not None else None
    if stored is not None:
        facts = {"run": str(run.path), "dataset": f"{dataset.path} version {dataset.version}", "items": str(stored.num_rows)}
        found = _run_predictions(run, stored, facts)
    else:
        found = _score_with_run(run, dataset, dataset.rows(split), columns, progress)
    return replace(found, facts={**found.facts, "split": split or "all"})


def _stored_table(run: "Run", dataset: "Dataset", split: str, columns: Sequence[str]) -> "pa.Table | None":
    """Return the table that `vigil evaluate` wrote, if model, calibration, rows and columns are unchanged since."""
    file = run.evaluation(split) / "predictions.parquet"
    if not file.is_file():
        return None
    table = read_predictions(file)
    fingerprint = (table.schema.metadata or {}).get(FINGERPRINT_KEY)
    wanted = {name for name in columns if name in dataset.columns}
    current = fingerprint == predictions_fingerprint(run, dataset, split).encode() and wanted <= set(table.column_names)
    return table if current else None


def _run_predictions(run: "Run", table: "pa.Table", facts: Mapping[str, str]) -> Predictions:
    taxonomy = run.recipe.taxonomy
    return Predictions(str(run.path), "run", table, taxonomy.labels, run.read_thresholds(), taxonomy, run.read_policy(), facts)


def _score_with_run(
    run: "Run", dataset: "Dataset", rows: "NDArray[np.int64]", columns: Sequence[str], progress: ProgressCallback | None
) -> Predictions:
    from vigil_training.runs.predict import outputs_to_table, predict_rows

    outputs = predict_rows(run, dataset, rows, progress=progress)
    _check_not_empty(len(outputs.ids), dataset, len(rows))
    table = outputs_to_table(outputs, run, dataset, rows, columns)
    return _run_predictions(run, table, {"run": str(run.path), **_facts(dataset, table.num_rows, len(outputs.refused))})


def _load_bundle(
    source: Path, data: StrPath | None, split: str | None, columns: Sequence[str], progress: ProgressCallback | None
) -> Predictions:
    dataset = bundle_dataset(source, data)
    found = _score_with_bundle(source, dataset, dataset.rows(split), columns, progress)
    return replace(found, facts={**found.facts, "split": split or "all"})


def bundle_dataset(bundle: StrPath, data: StrPath | None) -> "Dataset":
    """Return a dataset, by default the one that a bundle's model was trained on.

    Raises:
        UserError: if none is named and the bundle records none.
    """
    from vigil_data.dataset.dataset import Dataset

    if data is not None:
        return Dataset(Path(data))
    recorded = training_dataset(bundle)
    if recorded is None:
        raise UserError(f"{bundle}: the bundle does not record its training dataset; name a dataset with --data")
    return Dataset(Path(recorded[0]), recorded[1])


def _score_with_bundle(
    source: Path, dataset: "Dataset", rows: "NDArray[np.int64]", columns: Sequence[str], progress: ProgressCallback | None
) -> Predictions:
    from vigil_serving.bundle.save import read_taxonomy
    from vigil_serving.runtime.scorer import Scorer

    scorer = Scorer(source)
    bundle = scorer.bundle
    table = score_table(scorer, dataset, rows, columns, progress)
    facts = {"bundle": str(source), "digest": bundle.digest, **_facts(dataset, table.num_rows, len(rows) - table.num_rows)}
    return Predictions(
        str(source), "bundle", table, bundle.labels, bundle.thresholds, read_taxonomy(source), bundle.policy, facts
    )


def score_table(
    scorer: "Scorer",
    dataset: "Dataset",
    rows: "NDArray[np.int64]",
    columns: Sequence[str],
    progress: ProgressCallback | None = None,
) -> "pa.Table":
    """Return the predictions table of a bundle; items that cannot be decoded are left out.

    Args:
        scorer: the loaded bundle.
        dataset: the dataset.
        rows: row numbers, int64 ``[N]``.
        columns: columns of the dataset to copy, in addition to the standard ones.
        progress: called with ``predicting``, the items done and their number.

    Raises:
        UserError: if no item can be decoded.
    """
    from vigil_training.runs.prediction_table import predictions_table

    labels, decisions = scorer.bundle.labels, []
    for start in range(0, len(rows), CHUNK_ROWS):
        decisions += scorer.score(dataset.take(rows[start : start + CHUNK_ROWS]))
        if progress is not None:
            progress("predicting", len(decisions), len(rows))
    scored = np.array([i for i, decision in enumerate(decisions) if decision.error is None], np.int64)
    _check_not_empty(len(scored), dataset, len(rows))
    return predictions_table(
        [decisions[i].id for i in scored],
        labels,
        dataset.targets(labels, rows[scored]),
        np.array([list(decisions[i].probabilities.values()) for i in scored], np.float64),
        [decisions[i].presence for i in scored],
        dataset=dataset,
        rows=rows,
        columns=columns,
    )


def _facts(dataset: "Dataset", items: int, undecodable: int) -> dict[str, str]:
    return {"dataset": f"{dataset.path} version {dataset.version}", "items": str(items), "undecodable": str(undecodable)}


def _check_not_empty(items: int, dataset: "Dataset", rows: int) -> None:
    if not items:
        raise UserError(f"{dataset.path}: none of the {rows} items can be decoded")
