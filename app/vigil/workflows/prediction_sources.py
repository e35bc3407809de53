"""Predictions of whatever the user names: a table of scores, a run, or a bundle.

Comparisons, policies and suites take any of the three, so that a candidate and what is in production, Vigil's models and others,
are judged in the same way.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vigil_data.errors import UserError
from vigil_evaluation import predictions

if TYPE_CHECKING:
    import pyarrow as pa

    from vigil_data.dataset.dataset import Dataset
    from vigil_data.taxonomy import Taxonomy
    from vigil_evaluation.policy.compiled_policy import CompiledPolicy
    from vigil_training.runs.run import Run

CHUNK = 256
FINGERPRINT_KEY = b"vigil.made_of"
"""Metadata of a run's predictions.parquet: what they depend on; see :func:`predictions_fingerprint`."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Predictions:
    """A predictions table and what is known of the model that made it.

    Attributes:
        name: how to speak of it: the path that was named.
        kind: ``table``, ``run`` or ``bundle``.
        table: see :mod:`vigil_evaluation.predictions`.
        labels: of the table, in the taxonomy's order where that is known.
        thresholds: label to the lowest probability that is flagged; 0.5 each for a bare table.
        taxonomy: of the model; ``None`` for a bare table.
        policy: the compiled policy that the run or bundle carries, if it does.
        facts: what the table is of, for its reader.
    """

    name: str
    kind: str
    table: "pa.Table"
    labels: tuple[str, ...]
    thresholds: Mapping[str, float]
    taxonomy: "Taxonomy | None"
    policy: "CompiledPolicy | None"
    facts: Mapping[str, str]


def load_predictions(
    source: Path,
    *,
    data: Path | None = None,
    split: str | None = "test",
    columns: Sequence[str] = (),
    progress: Progress | None = None,
) -> Predictions:
    """Read or make the predictions of a source.

    Args:
        source: a Parquet file of predictions, a run folder, or a bundle.
        data: the dataset to predict; a run's or bundle's own if not given. A Parquet file takes none.
        split: which rows of the dataset; all if ``None``. A Parquet file that has a column ``split`` with that value among others
            is cut to it.
        columns: of the dataset, to be taken over beside those that are always.
        progress: told the items done and their number.

    Raises:
        UserError: if the source is none of these, or its dataset or split is not there.
    """
    if source.is_file():
        return _of_table(source, data, split)
    if (source / "resolved.yaml").is_file() and not (source / "bundle.json").is_file():
        return _of_run(source, data, split, columns, progress)
    if (source / "bundle.json").is_file():
        return _of_bundle(source, data, split, columns, progress)
    what = "is not a run, not a bundle and not a Parquet file of predictions" if source.exists() else "is not there"
    raise UserError(f"{source} {what}; name one of these")


def score_rows(
    source: Path, data: "Dataset", rows: "np.ndarray", columns: Sequence[str], progress: Progress | None = None
) -> Predictions:
    """Predict rows of a dataset with a run or a bundle, whatever lies in its folder already.

    Args:
        source: a run folder or a bundle.
        data: the dataset.
        rows: row numbers, int64 ``[N]``.
        columns: of the dataset, to be taken over beside those that are always.
        progress: told the items done and their number.
    """
    if (source / "bundle.json").is_file():
        return _scored_by_bundle(source, data, rows, columns, progress)
    from vigil_training.runs.run import Run

    return _predicted_by_run(Run(source), data, rows, columns, progress)


def _of_table(source: Path, data: Path | None, split: str | None) -> Predictions:
    import pyarrow.compute as pc

    if data is not None:
        raise UserError(f"--data {data}: {source} is a table of predictions, which needs no dataset")
    table = predictions.read_predictions(source)
    if split is not None and "split" in table.column_names and pc.any(pc.equal(table.column("split"), split)).as_py():
        table = table.filter(pc.equal(table.column("split"), split))
    labels = predictions.prediction_labels(table)
    facts = {"predictions": str(source), "items": str(table.num_rows)}
    return Predictions(str(source), "table", table, labels, dict.fromkeys(labels, 0.5), None, None, facts)


def _of_run(source: Path, data: Path | None, split: str | None, columns: Sequence[str], progress: Progress | None) -> Predictions:
    from vigil_data.dataset.dataset import Dataset
    from vigil_training.runs.run import Run

    run = Run(source)
    run.read_thresholds()
    dataset = Dataset(data) if data is not None else run.dataset()
    kept = _kept(run, dataset, split, columns) if data is None and split is not None else None
    if kept is not None:
        facts = {"run": str(run.path), "dataset": f"{dataset.path} version {dataset.version}", "items": str(kept.num_rows)}
        found = _of_run_table(run, kept, facts)
    else:
        found = _predicted_by_run(run, dataset, dataset.rows(split), columns, progress)
    return replace(found, facts={**found.facts, "split": split or "all"})


def _kept(run: "Run", dataset: "Dataset", split: str, columns: Sequence[str]) -> "pa.Table | None":
    """What `vigil evaluate` predicted of this split, if the model, its calibration, the rows and the columns are still these."""
    file = run.evaluation(split) / "predictions.parquet"
    if not file.is_file():
        return None
    table = predictions.read_predictions(file)
    made_of = (table.schema.metadata or {}).get(FINGERPRINT_KEY)
    wanted = {name for name in columns if name in dataset.columns}
    fresh = made_of == predictions_fingerprint(run, dataset, split).encode() and wanted <= set(table.column_names)
    return table if fresh else None


def predictions_fingerprint(run: "Run", dataset: "Dataset", split: str) -> str:
    """A digest of all that a run's predictions of a split depend on: rows, weights and calibration."""
    calibration = run.calibration.read_bytes() if run.calibration.is_file() else b""
    parts = (str(dataset.path.resolve()), str(dataset.version), split, str(run.checkpoint("best").resolve()))
    return hashlib.sha256(json.dumps(parts).encode() + calibration).hexdigest()


def _of_run_table(run: "Run", table: "pa.Table", facts: Mapping[str, str]) -> Predictions:
    taxonomy = run.recipe.taxonomy
    return Predictions(str(run.path), "run", table, taxonomy.labels, run.read_thresholds(), taxonomy, run.read_policy(), facts)


def _predicted_by_run(
    run: "Run", dataset: "Dataset", rows: "np.ndarray", columns: Sequence[str], progress: Progress | None
) -> Predictions:
    from vigil_training.runs.predict import predict_rows, outputs_to_table

    bridge = None if progress is None else lambda _, done, total: progress(done, total)
    predicted = predict_rows(run, dataset, rows, progress=bridge)
    _refuse_empty(len(predicted.ids), dataset, len(rows))
    table = outputs_to_table(predicted, run, dataset, rows, columns)
    facts = {"run": str(run.path), **_facts(dataset, table.num_rows, len(predicted.refused))}
    return _of_run_table(run, table, facts)


def _of_bundle(
    source: Path, data: Path | None, split: str | None, columns: Sequence[str], progress: Progress | None
) -> Predictions:
    from vigil_data.dataset.dataset import Dataset
    from vigil_serving.bundle.load import load_bundle

    if data is not None:
        dataset = Dataset(data)
    else:
        began: dict[str, Any] = dict(load_bundle(source, check_hashes=False).metadata.lineage.get("dataset", {}))
        if "path" not in began:
            raise UserError(f"{source}: the bundle does not say on which dataset it was trained; name one with --data")
        dataset = Dataset(Path(began["path"]), began.get("version"))
    found = _scored_by_bundle(source, dataset, dataset.rows(split), columns, progress)
    return replace(found, facts={**found.facts, "split": split or "all"})


def _scored_by_bundle(
    source: Path, dataset: "Dataset", rows: "np.ndarray", columns: Sequence[str], progress: Progress | None
) -> Predictions:
    from vigil_serving.bundle.save import read_taxonomy
    from vigil_serving.runtime.scorer import Scorer
    from vigil_training.runs.prediction_table import predictions_table

    scorer = Scorer(source)
    bundle = scorer.bundle
    labels = bundle.metadata.labels
    decisions = []
    for start in range(0, len(rows), CHUNK):
        decisions += scorer.score(dataset.take(rows[start : start + CHUNK]))
        if progress is not None:
            progress(min(start + CHUNK, len(rows)), len(rows))
    kept = np.array([place for place, decision in enumerate(decisions) if decision.error is None], np.int64)
    _refuse_empty(len(kept), dataset, len(rows))
    table = predictions_table(
        [decisions[place].id for place in kept],
        labels,
        dataset.targets(labels, rows[kept]),
        np.array([list(decisions[place].probabilities.values()) for place in kept], np.float64),
        [decisions[place].presence for place in kept],
        dataset=dataset,
        rows=rows,
        columns=columns,
    )
    facts = {"bundle": str(source), **_facts(dataset, table.num_rows, len(rows) - len(kept))}
    return Predictions(str(source), "bundle", table, labels, bundle.thresholds, read_taxonomy(source), bundle.policy, facts)


def _facts(dataset: "Dataset", items: int, undecodable: int) -> dict[str, str]:
    return {"dataset": f"{dataset.path} version {dataset.version}", "items": str(items), "undecodable": str(undecodable)}


def _refuse_empty(items: int, dataset: "Dataset", rows: int) -> None:
    if not items:
        raise UserError(f"{dataset.path}: none of the {rows} items can be decoded")
