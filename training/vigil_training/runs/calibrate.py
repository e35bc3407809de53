"""The last stage of a run: from what the model said of the calibration rows to calibrated probabilities and thresholds.

Both lie in the run folder, and everything that decides (evaluation, export, policies) takes them from there.
"""

import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import UserError
from vigil_evaluation.calibration.calibrators import Calibrated, Calibration
from vigil_evaluation.metrics.thresholds import UNDEFINED
from vigil_evaluation.metrics.thresholds import choose as choose_thresholds
from vigil_evaluation.specs import CalibrationSpec, EvaluationSpec
from vigil_training.runs.prediction_table import groups_of

if TYPE_CHECKING:
    from vigil_training.runs.predict import Predicted
    from vigil_training.runs.run import Run

log = logging.getLogger("vigil.calibrate")


def raw_probabilities(logits_NL: NDArray[np.floating]) -> NDArray[np.float64]:
    """The model's own probabilities, float64 ``[N, L]``, before calibration."""
    probabilities: NDArray[np.float64] = 1 / (1 + np.exp(-logits_NL.astype(np.float64)))
    return probabilities


def fit_calibration_and_thresholds(
    run: "Run", predicted: "Predicted | None", dataset: Dataset, spec: EvaluationSpec | None = None
) -> None:
    """Fit the calibration, choose thresholds on calibrated probabilities, and write both; that finishes the run.

    Args:
        run: the run.
        predicted: what the model said of the calibration rows; ``None`` if there are none, and nothing can be fitted.
        dataset: where those rows are.
        spec: how to calibrate; the recipe's own if not given.
    """
    from vigil_evaluation.calibration.fit import fit_all

    labels, spec = run.recipe.taxonomy.labels, spec or run.recipe.evaluation
    calibrated, thresholds = Calibrated(Calibration.identity(labels), None, None), [UNDEFINED] * len(labels)
    if predicted is not None and predicted.ids:
        order = np.argsort(np.array(predicted.ids))  # of no rank's making
        targets_NL, raw_NL = predicted.targets_NL[order].astype(np.float64), raw_probabilities(predicted.logits_NL[order])
        ids, presence = ([values[i] for i in order] for values in (predicted.ids, predicted.presence))
        groups = groups_of(spec.calibration.by, ids, presence, dataset)
        calibrated = fit_all(targets_NL, raw_NL, labels, spec, groups, presence)
        thresholds = choose_thresholds(targets_NL, calibrated.calibration.apply(raw_NL, groups).astype(np.float32))
    for label, found in calibrated.calibration.labels.items():
        log.info("%s: calibrated by %s on %d known targets, %d positive", label, found.pooled.method, found.known, found.positive)
    calibrated.write(run.calibration)
    beside = run.thresholds.with_name(f".{run.thresholds.name}.part")
    beside.write_text(json.dumps(dict(zip(labels, map(float, thresholds), strict=True)), indent=2) + "\n")
    beside.replace(run.thresholds)


def recalibrate(
    run: "Run",
    spec: CalibrationSpec,
    dataset: Dataset | None = None,
    split: str | None = None,
    *,
    checkpoint: str = "best",
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Calibrate a finished run anew, on another split or by other means, and choose its thresholds anew.

    Args:
        run: a finished run.
        spec: how to calibrate.
        dataset: where the split is; the run's own, in the version it was trained on, if not given.
        split: which rows; the recipe's validation split if not given.
        checkpoint: ``best``, ``last`` or the path of one.
        progress: told the items done and their number.

    Returns:
        How many items it was fitted on.

    Raises:
        UserError: if the run is unfinished, or the split absent or empty.
    """
    from vigil_training.runs.predict import predict_rows

    recipe = run.recipe
    run.read_thresholds()
    dataset = dataset or run.dataset()
    split = split or recipe.data.validation
    rows = dataset.rows(split)
    predicted = predict_rows(run, dataset, rows, checkpoint=checkpoint, progress=progress)
    if not predicted.ids:
        raise UserError(f"{dataset.path}: no item of split {split} can be decoded")
    fit_calibration_and_thresholds(run, predicted, dataset, recipe.evaluation.model_copy(update={"calibration": spec}))
    return len(predicted.ids)
