"""Evaluate a run on a split, or any model's table of scores: predictions, metrics and a report in one folder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import UserError, percent_hint
from vigil_data.filesystem import StrPath, replaced_file, sha256_file, write_file
from vigil_data.items import Modality
from vigil_data.lineage import Input, Node, record
from vigil_data.presence import PRESENCE
from vigil_data.progress import ProgressCallback
from vigil_evaluation.specs import EvaluationSpec

if TYPE_CHECKING:
    import pyarrow as pa

    from vigil_data.loading.packing import Refusal
    from vigil_evaluation.calibration.calibrators import FittedCalibration
    from vigil_evaluation.evaluation_data import EvaluationData
    from vigil_evaluation.policy.compiled_policy import CompiledPolicy
    from vigil_evaluation.report.evidence import ItemExample
    from vigil_evaluation.results import EvaluationResults
    from vigil_serving.bundle.load import Bundle
    from vigil_serving.bundle.policy_text import PolicyText
    from vigil_training.runs.run import Run


class Evaluation(NamedTuple):
    """Outcome of an evaluation.

    Attributes:
        folder: holds predictions.parquet, metrics.json and report.html.
        results: the metrics.
        table: the predictions table.
        refused: items that could not be decoded.
        data: the parsed table.
        contents: id to texts and evidence of the items that the report shows.
        dataset: dataset of the items; ``None`` for a table of scores.
    """

    folder: Path
    results: "EvaluationResults"
    table: "pa.Table"
    refused: "Sequence[Refusal]"
    data: "EvaluationData"
    contents: "Mapping[str, ItemExample]"
    dataset: Dataset | None


def evaluate(
    run: "Run",
    dataset: Dataset | None = None,
    split: str = "test",
    *,
    checkpoint: str = "best",
    only: Sequence[Modality] = (),
    spec: EvaluationSpec | None = None,
    to: StrPath | None = None,
    policy: "CompiledPolicy | None" = None,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Predict a split with a run's model, and write predictions.parquet, metrics.json and report.html.

    Args:
        run: a finished run.
        dataset: the dataset (default: the run's own, in the version it was trained on).
        split: which rows.
        checkpoint: ``best``, ``last`` or the path of one.
        only: modalities that the model sees (default: all).
        spec: settings (default: the recipe's).
        to: the folder (default: ``RUN/evaluation/SPLIT``; its name includes the checkpoint and modalities if not the defaults).
        policy: the compiled policy that acts on the items (default: the run's).
        progress: called with (task, done, total).

    Raises:
        UserError: if the split is empty, the run unfinished, or a modality not among the model's.
    """
    from vigil.workflows.evidence import item_examples
    from vigil.workflows.prediction_sources import FINGERPRINT_KEY, predictions_fingerprint
    from vigil_evaluation.evaluation_data import EvaluationData
    from vigil_training.runs.lineage import record_checkpoint
    from vigil_training.runs.predict import outputs_to_table, predict_rows

    thresholds, spec = run.read_thresholds(), spec or run.recipe.evaluation
    policy = run.current_policy() if policy is None else policy
    dataset = dataset or run.dataset()
    own = dataset.path.resolve() == Path(run.read_environment()["dataset"]["path"])
    name = split if own else f"{dataset.path.name}-{split}"
    rows = dataset.rows(split)
    predicted = predict_rows(run, dataset, rows, checkpoint=checkpoint, only=only, progress=progress)
    if not predicted.ids:
        raise UserError(f"{dataset.path}: no item of split {split} can be decoded; the first: {predicted.refused[0].reason}")
    table = outputs_to_table(predicted, run, dataset, rows, spec.columns)
    facts: dict[str, str] = {
        "run": run.path.name,
        "dataset": f"{dataset.path} version {dataset.version}",
        "split": split,
        "checkpoint": checkpoint,
        "items": str(len(predicted.ids)),
        "undecodable": str(len(predicted.refused)),
        "modalities": "+".join(only) if only else "all",
    }
    model = record_checkpoint(run, run.checkpoint(checkpoint))
    if own and checkpoint == "best" and not only:
        table = table.replace_schema_metadata({FINGERPRINT_KEY: predictions_fingerprint(run, dataset, split)})
    folder = run.evaluation(name + _suffix(checkpoint, only)) if to is None else Path(to)
    data = EvaluationData.from_table(table, run.recipe.taxonomy.labels, thresholds, spec)
    contents: dict[str, ItemExample] = {}

    def examples(ids: Sequence[str]) -> "Mapping[str, ItemExample]":
        contents.update(item_examples(run, dataset, ids, checkpoint=checkpoint, only=only))
        return contents

    results = write_evaluation(
        data,
        facts,
        to=folder,
        calibrated=run.read_calibrated(),
        policy=policy,
        examples=examples,
        inputs=[model.as_input("model"), dataset.node.as_input("evaluated")],
        progress=progress,
    )
    return Evaluation(folder, results, table, predicted.refused, data, contents, dataset)


def evaluate_bundle(
    bundle: StrPath,
    dataset: Dataset,
    split: str = "test",
    *,
    to: StrPath,
    spec: EvaluationSpec,
    policy_text: StrPath | None = None,
    calibrate_split: str | None = None,
    policy: "CompiledPolicy | None" = None,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Predict a split with a bundle, and write predictions.parquet, metrics.json and report.html.

    With policy texts it also writes ``policy_text.json``: the texts, what was measured of each label with a known positive and
    negative item, and its calibration. Scoring and serving with that file mark these labels as evaluated.

    Args:
        bundle: the bundle's folder.
        dataset: the dataset.
        split: which rows.
        to: the folder.
        spec: settings.
        policy_text: file of policy texts that a guard reads in place of the bundle's.
        calibrate_split: another split of the dataset, on which labels with a new text are calibrated and get a threshold.
        policy: the compiled policy that acts on the items (default: the bundle's).
        progress: called with (task, done, total).

    Raises:
        UserError: if the split is empty, or the bundle cannot be given the texts.
    """
    from vigil.workflows.prediction_sources import score_table
    from vigil_evaluation.evaluation_data import EvaluationData
    from vigil_serving.bundle.policy_text import POLICY_TEXT
    from vigil_serving.bundle.policy_text_file import read_policy_text
    from vigil_serving.runtime.scorer import Scorer

    scorer = original = Scorer(bundle)
    texts = None if policy_text is None else read_policy_text(policy_text, original.bundle)
    if texts is not None:
        scorer = Scorer(original.bundle, sessions=original.sessions, policy_text=texts)
        if calibrate_split is not None:
            table = score_table(scorer, dataset, dataset.rows(calibrate_split), (), progress)
            texts = calibrate_texts(texts, scorer.bundle, table, spec)
            scorer = Scorer(original.bundle, sessions=original.sessions, policy_text=texts)
    loaded, rows = scorer.bundle, dataset.rows(split)
    table = score_table(scorer, dataset, rows, spec.columns, progress)
    facts = {
        "bundle": str(bundle),
        "dataset": f"{dataset.path} version {dataset.version}",
        "split": split,
        "items": str(table.num_rows),
        "undecodable": str(len(rows) - table.num_rows),
        **({} if policy_text is None else {"policy text": str(policy_text)}),
    }
    data = EvaluationData.from_table(table, loaded.labels, loaded.thresholds, spec)
    results = write_evaluation(
        data,
        facts,
        to=to,
        calibrated=loaded.calibrated,
        policy=loaded.policy if policy is None else policy,
        inputs=[Input("bundle", loaded.digest, "model", Path(bundle).name), dataset.node.as_input("evaluated")],
        progress=progress,
    )
    if texts is not None:
        evaluated_texts(texts, original.bundle, results, facts).write(Path(to) / POLICY_TEXT)
    return Evaluation(Path(to), results, table, (), data, {}, dataset)


def calibrate_texts(texts: "PolicyText", bundle: "Bundle", table: "pa.Table", spec: EvaluationSpec) -> "PolicyText":
    """Return policy texts with the calibration and threshold of each uncalibrated label that has known targets of both kinds.

    Args:
        texts: the policy texts.
        bundle: the bundle that reads them.
        table: its predictions for labelled items, not calibrated for these labels.
        spec: settings of the calibration.
    """
    import numpy as np

    from vigil_evaluation.predictions import prediction_arrays

    targets_NL, _ = prediction_arrays(table, bundle.uncalibrated)
    both_L = (np.nanmax(targets_NL, 0, initial=0) >= 0.5) & (np.nanmin(targets_NL, 0, initial=1) < 0.5)
    labels = [label for label, both in zip(bundle.uncalibrated, both_L, strict=True) if both]
    if not labels:
        raise UserError("policy text: no label with a new text has known positive and negative items to calibrate on")
    by = bundle.calibrated.calibration.by
    own = spec.model_copy(update={"calibration": spec.calibration.model_copy(update={"by": by})})
    calibrated, thresholds = calibrate_table(table, labels, own)
    fitted = {
        label: replace(texts.labels[label], calibration=found.to_dict(), threshold=float(thresholds[label]))
        for label, found in calibrated.calibration.labels.items()
    }
    return replace(texts, labels={**texts.labels, **fitted}, bundle=bundle.digest, calibrated_by=by)


def evaluated_texts(
    texts: "PolicyText", bundle: "Bundle", results: "EvaluationResults", facts: Mapping[str, str]
) -> "PolicyText":
    """Return policy texts with what was measured of each label that had known targets of both kinds."""
    from vigil_serving.bundle.policy_text import TextEvaluation

    labels = dict(texts.labels)
    for name, found in results.overall.labels.items():
        if name in labels and found.average_precision is not None and found.auroc is not None:
            measured = TextEvaluation(
                facts["dataset"], facts["split"], found.known, found.positive, found.average_precision, found.auroc
            )
            labels[name] = replace(labels[name], evaluation=measured)
    return replace(texts, labels=labels, bundle=bundle.digest)


def write_evaluation(
    data: "EvaluationData",
    facts: Mapping[str, str],
    *,
    to: StrPath,
    calibrated: "FittedCalibration | None" = None,
    policy: "CompiledPolicy | None" = None,
    examples: "Callable[[Sequence[str]], Mapping[str, ItemExample]] | None" = None,
    inputs: Sequence[Input] = (),
    progress: ProgressCallback | None = None,
) -> "EvaluationResults":
    """Evaluate a predictions table, and write predictions.parquet, metrics.json and report.html, each atomically.

    Args:
        data: the parsed table, of calibrated probabilities.
        facts: description of the table for readers.
        to: the folder.
        calibrated: the calibration that produced the probabilities, if known.
        policy: the compiled policy that acts on them, if known.
        examples: returns the contents of items with the given ids, for the report.
        inputs: the model and the data, for the lineage.
        progress: called with (task, done, total).
    """
    import pyarrow.parquet as pq

    from vigil_evaluation.evaluate import evaluate_data
    from vigil_evaluation.report.evaluation_page import render_evaluation_page
    from vigil_evaluation.report.hardest_errors import hardest_error_ids

    to, progress = Path(to), progress or (lambda *_: None)
    results = evaluate_data(data, facts, calibrated=calibrated, policy=policy, progress=progress)
    contents: Mapping[str, ItemExample] = {}
    if examples is not None:
        progress("evidence of the hardest errors", 0, None)
        contents = examples(hardest_error_ids(data))
    progress("report", 0, None)
    to.mkdir(parents=True, exist_ok=True)
    with replaced_file(to / "predictions.parquet") as partial:
        pq.write_table(data.table, partial)
    write_file(to / "metrics.json", results.to_json())
    render_evaluation_page(results, data, to / "report.html", contents)
    described = {name: facts[name] for name in ("split", "items") if name in facts}
    record(Node("evaluation", sha256_file(to / "metrics.json"), to.name, str(to.resolve()), described), inputs)
    return results


def evaluate_table(
    table: "pa.Table",
    name: str,
    spec: EvaluationSpec,
    *,
    to: StrPath,
    calibrate_on: "pa.Table | None" = None,
    thresholds: Mapping[str, float] | None = None,
    policy: "CompiledPolicy | None" = None,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Evaluate a table of any model's scores, and write predictions.parquet, metrics.json and report.html.

    Args:
        table: see :mod:`vigil_evaluation.predictions`. Without targets there are no metrics, but volumes, actions and drift.
        name: name of the table for readers.
        spec: settings.
        to: the folder.
        calibrate_on: predictions of the same model for other, labelled items, on which probabilities are calibrated and
            thresholds chosen, and with which these items are compared for drift.
        thresholds: label to the lowest probability that is flagged (default: chosen on ``calibrate_on``, or else 0.5).
        policy: the compiled policy that acts on the items; its constraints are measured on them again.
        progress: called with (task, done, total).

    Raises:
        UserError: if a table or a threshold is malformed, or the policy has a label that the table lacks.
    """
    from vigil_evaluation.evaluation_data import EvaluationData
    from vigil_evaluation.predictions import check_predictions, prediction_labels, scored_items

    check_predictions(table, name)
    table, failed = scored_items(table, name)
    labels = prediction_labels(table)
    if policy is not None and (absent := [label for label in policy.labels if label not in labels]):
        raise UserError(f"{name}: has no column probability.{absent[0]}, and the policy {policy.name} acts on {absent[0]}")
    scores = calibrate_scores(table, name, labels, spec, calibrate_on=calibrate_on, thresholds=thresholds, progress=progress)
    facts = {
        "predictions": name,
        "items": str(table.num_rows),
        **({"undecodable": str(failed)} if failed else {}),
        **scores.facts,
    }
    data = EvaluationData.from_table(scores.table, labels, scores.thresholds, spec)
    results = write_evaluation(data, facts, to=to, calibrated=scores.calibrated, policy=policy, progress=progress)
    return Evaluation(Path(to), results, data.table, (), data, {}, None)


class CalibratedScores(NamedTuple):
    """A predictions table with calibrated probabilities.

    Attributes:
        table: the table.
        thresholds: label to the lowest probability that is flagged.
        calibrated: what was fitted; ``None`` for probabilities that are taken as they are.
        facts: provenance, as text.
    """

    table: "pa.Table"
    thresholds: dict[str, float]
    calibrated: "FittedCalibration | None"
    facts: dict[str, str]


def calibrate_scores(
    table: "pa.Table",
    name: str,
    labels: Sequence[str],
    spec: EvaluationSpec,
    *,
    calibrate_on: "pa.Table | None" = None,
    thresholds: Mapping[str, float] | None = None,
    progress: ProgressCallback | None = None,
) -> CalibratedScores:
    """Calibrate a table of scores on another one, if there is one, and choose thresholds.

    Args:
        table: see :mod:`vigil_evaluation.predictions`.
        name: name of the table for messages.
        labels: labels of the table.
        spec: settings of the calibration.
        calibrate_on: predictions of the same model for other, labelled items.
        thresholds: label to the lowest flagged probability (default: chosen on ``calibrate_on``, or else 0.5).
        progress: called with (task, done, total).

    Raises:
        UserError: if a table is malformed, nothing is labelled in ``calibrate_on``, or a threshold is out of range or of a label
            that the table lacks.
    """
    from vigil_evaluation.metrics.thresholds import DEFAULT_THRESHOLD
    from vigil_evaluation.predictions import (
        check_predictions,
        labelled,
        prediction_arrays,
        prediction_labels,
        scored_items,
        with_probabilities,
    )

    unknown = [label for label in thresholds or {} if label not in labels]
    has = f"its labels are {', '.join(labels)}"
    problems = [f"{name}: no label {label}, for which a threshold is given; {has}" for label in unknown]
    for label, cut in (thresholds or {}).items():
        if not 0 <= cut <= 1:
            problems.append(f"{name}: the threshold of {label} must be a probability from 0 to 1, not {cut:g}{percent_hint(cut)}")
    if problems:
        raise UserError(*problems)
    cuts = dict.fromkeys(labels, DEFAULT_THRESHOLD)
    if calibrate_on is None:
        return CalibratedScores(table, cuts | dict(thresholds or {}), None, {})
    where = f"calibration of {name}"
    check_predictions(calibrate_on, where)
    calibrate_on, _ = scored_items(calibrate_on, where)
    if missing := [label for label in labels if label not in prediction_labels(calibrate_on)]:
        raise UserError(f"{where}: the table to calibrate on has no column probability.{', probability.'.join(missing)}")
    if not labelled(calibrate_on, labels):
        raise UserError(
            f"{where}: the table to calibrate on has no known target (column target.LABEL); calibrate on labelled items"
        )
    if progress is not None:
        progress("calibration", 0, None)
    try:
        calibrated, chosen = calibrate_table(calibrate_on, labels, spec)
    except UserError as error:
        raise UserError(*(f"{where}: {line}" for line in error.lines)) from None
    _, raw_NL = prediction_arrays(table, labels)
    read_NL = calibrated.calibration.apply(raw_NL, _column(table, calibrated.calibration.by))
    facts = {"calibrated on": f"{calibrate_on.num_rows} other items"}
    return CalibratedScores(with_probabilities(table, labels, read_NL), cuts | chosen | dict(thresholds or {}), calibrated, facts)


def calibrate_table(
    table: "pa.Table", labels: Sequence[str], spec: EvaluationSpec
) -> "tuple[FittedCalibration, dict[str, float]]":
    """Fit a calibration on a predictions table, and choose thresholds on the calibrated probabilities.

    Rows count as the number of items that they represent (:mod:`vigil_evaluation.sampling_weights`).
    """
    import numpy as np

    from vigil_evaluation.calibration.fit import fit_calibration
    from vigil_evaluation.metrics.thresholds import choose_thresholds
    from vigil_evaluation.predictions import prediction_arrays
    from vigil_evaluation.sampling_weights import read_sampling_weights

    targets_NL, raw_NL = prediction_arrays(table, labels)
    weights = read_sampling_weights(table, targets_NL)
    groups, presence = (_column(table, name) for name in (spec.calibration.by, PRESENCE))
    calibrated = fit_calibration(targets_NL, raw_NL, labels, spec, groups, presence, weights=weights)
    read_NL = calibrated.calibration.apply(raw_NL, groups).astype(np.float32)
    chosen = choose_thresholds(targets_NL, read_NL, weights.label_N)
    return calibrated, dict(zip(labels, chosen, strict=True))


def _column(table: "pa.Table", name: str | None) -> list[str | None] | None:
    if name is None or name not in table.column_names:
        return None
    return [None if value is None else str(value) for value in table.column(name).to_pylist()]


def _suffix(checkpoint: str, only: Sequence[Modality]) -> str:
    checkpoint_part = "" if checkpoint == "best" else f"-{Path(checkpoint).stem}"
    return checkpoint_part + (f"-only-{'+'.join(only)}" if only else "")
