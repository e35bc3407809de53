"""Metrics of one label from arrays of targets and scores, with scikit-learn's definitions.

A NaN target is unknown and ignored. A soft target counts as positive from 0.5 on, except in the Brier score, the log loss and the
calibration error, which compare probabilities with the targets as they are. An undefined metric is ``None``, never 0 or 1: a
label without a known positive or without a known negative has no ranking. For a micro average over several labels, pass all
their cells in one vector. Weights, if given, count as scikit-learn's ``sample_weight``: an item of weight 10 counts as ten.

Example:
    >>> average_precision([1, 0, 1, float("nan")], [0.9, 0.8, 0.7, 0.1])
    0.8333333333333333
"""

from vigil_evaluation.metrics.arrays import Floats, Integers, effective_items, known_items
from vigil_evaluation.metrics.curve_points import precision_recall_curve, roc_curve
from vigil_evaluation.metrics.decisions import Confusion, decisions_at, f1_at
from vigil_evaluation.metrics.label_confusion import LabelConfusion, confusion_between_labels
from vigil_evaluation.metrics.probabilities import (
    EPSILON,
    RELIABILITY_BINS,
    Reliability,
    brier,
    calibration_error,
    log_loss,
    log_losses,
    mass_bins,
    reliability,
)
from vigil_evaluation.metrics.ranking import (
    OperatingPoints,
    auroc,
    average_precision,
    operating_points,
    partial_auroc,
    recall_at_fpr,
    recall_at_precision,
)
from vigil_evaluation.metrics.thresholds import choose_thresholds

__all__ = [
    "EPSILON",
    "RELIABILITY_BINS",
    "Confusion",
    "Floats",
    "Integers",
    "LabelConfusion",
    "OperatingPoints",
    "Reliability",
    "auroc",
    "average_precision",
    "brier",
    "calibration_error",
    "choose_thresholds",
    "confusion_between_labels",
    "decisions_at",
    "effective_items",
    "f1_at",
    "known_items",
    "log_loss",
    "log_losses",
    "mass_bins",
    "operating_points",
    "partial_auroc",
    "precision_recall_curve",
    "recall_at_fpr",
    "recall_at_precision",
    "reliability",
    "roc_curve",
]
