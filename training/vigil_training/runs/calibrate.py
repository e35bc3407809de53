"""Calibration and thresholds of a run: the last stage of training, and recalibration of a finished run.

Evaluation, export and policies read both from the run folder.
"""

import logging

import numpy as np

from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import UserError
from vigil_data.filesystem import write_json
from vigil_data.progress import ProgressCallback
from vigil_evaluation.calibration.calibrators import Calibration, FittedCalibration
from vigil_evaluation.metrics.thresholds import DEFAULT_THRESHOLD, choose_thresholds
from vigil_evaluation.specs import CalibrationSpec, EvaluationSpec
from vigil_training.runs.predict import ModelOutputs, predict_rows, raw_probabilities
from vigil_training.runs.prediction_table import calibration_groups, dataset_weights
from vigil_training.runs.run import Run

log = logging.getLogger("vigil.calibrate")

MAX_COMPLETE_ITEMS = 1000
"""Number of items of the split that a guard is asked about every label for, on average. Calibrators, conformal thresholds and
thresholds need known targets alone; the drift reference describes all items, by these."""


def fit_calibration_and_thresholds(
    run: Run, outputs: ModelOutputs | None, dataset: Dataset, spec: EvaluationSpec | None = None
) -> None:
    """Fit the calibration, choose thresholds on calibrated probabilities, and write both, which marks the run as finished.

    Items are weighted if the dataset has the columns ``inclusion_probability`` or ``weight``.

    Args:
        run: the run.
        outputs: the model's outputs for the calibration rows; ``None`` if there are no rows, and nothing can be fitted.
        dataset: the dataset of those rows.
        spec: how to calibrate (default: the recipe's settings).

    Raises:
        UserError: if a sampling column of the dataset has no valid value for an item with a known target.
    """
    from vigil_evaluation.calibration.fit import fit_calibration

    labels, spec = run.recipe.taxonomy.labels, spec or run.recipe.evaluation
    calibrated, thresholds = FittedCalibration(Calibration.identity(labels), None, None), [DEFAULT_THRESHOLD] * len(labels)
    if outputs is not None and outputs.ids:
        order = np.argsort(np.array(outputs.ids))  # independent of the number of ranks
        targets_NL, raw_NL = outputs.targets_NL[order].astype(np.float64), raw_probabilities(outputs.logits_NL[order])
        ids, presence = ([values[i] for i in order] for values in (outputs.ids, outputs.presence))
        groups = calibration_groups(spec.calibration.by, ids, presence, dataset)
        weights = dataset_weights(dataset, targets_NL, ids=ids)
        calibrated = fit_calibration(
            targets_NL, raw_NL, labels, spec, groups, presence, weights=weights, unknown_share=outputs.unknown_share
        )
        read_NL = calibrated.calibration.apply(raw_NL, groups).astype(np.float32)
        thresholds = choose_thresholds(targets_NL, read_NL, weights.label_N)
    for label, fitted in calibrated.calibration.labels.items():
        log.info(
            "%s: calibrated by %s on %d known targets, %d positive", label, fitted.pooled.method, fitted.known, fitted.positive
        )
    calibrated.write(run.calibration)
    write_json(run.thresholds, dict(zip(labels, map(float, thresholds), strict=True)))


def unknown_share(items: int) -> float:
    """Return the share of the items of a calibration split that a guard is asked about labels of unknown target."""
    return min(1.0, MAX_COMPLETE_ITEMS / max(items, 1))


def recalibrate(
    run: Run,
    spec: CalibrationSpec,
    dataset: Dataset | None = None,
    split: str | None = None,
    *,
    checkpoint: str = "best",
    progress: ProgressCallback | None = None,
) -> int:
    """Calibrate a finished run again, on another split or by other methods, and choose its thresholds again.

    Args:
        run: a finished run.
        spec: how to calibrate.
        dataset: has the split (default: the run's own dataset, in the version it was trained on).
        split: the rows to fit on (default: the recipe's validation split).
        checkpoint: ``best``, ``last`` or the path of one.
        progress: called after each batch with ``predicting``, the items done and their number.

    Returns:
        The number of items it was fitted on.

    Raises:
        UserError: if the run is unfinished, or the split absent or empty.
    """
    recipe = run.recipe
    run.read_thresholds()
    dataset = dataset or run.dataset()
    split = split or recipe.data.validation
    rows = dataset.rows(split)
    outputs = predict_rows(run, dataset, rows, checkpoint=checkpoint, progress=progress, unknown_share=unknown_share(len(rows)))
    if not outputs.ids:
        raise UserError(f"{dataset.path}: no item of split {split} can be decoded")
    fit_calibration_and_thresholds(run, outputs, dataset, recipe.evaluation.model_copy(update={"calibration": spec}))
    return len(outputs.ids)
