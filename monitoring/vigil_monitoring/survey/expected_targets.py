"""Expected targets of reviewed rows, for a variance that does not depend on which rare positives happened to be drawn.

A sample that misses the positives of large weight has a low estimate and a low variance at once, so that its interval is too
short and in the wrong place. The variance expected under a model of the targets has no such noise: as in generalized variance
functions (Wolter 2007, chapter 7), it is blended with the variance from the targets themselves.
"""

import numpy as np

from vigil_evaluation.metrics import Floats

MODEL_DEGREES = 4.0
"""Degrees of freedom that the expected variance of a stratum counts for; chosen by simulation (docs/monitoring.md)."""

DESIGN_WEIGHT = 0.6
"""Weight of the design among the two models, in the logarithm of the variance; chosen by the same simulation."""

SLOPE_PENALTY, INTERCEPT_PENALTY = 0.05, 1e-3
"""Ridge penalties of the standardized slopes, and of the intercept's distance from the share of positives."""

MAX_ITERATIONS, MAX_STEP, TOLERANCE = 50, 3.0, 1e-6

LEAST_Z = 3.0
"""Smallest z-value of the correlation of targets and predictions; less informative ones say nothing about unseen positives."""


def targets_by_design(targets_N: Floats, sizes_N: Floats) -> Floats:
    """Return the target of each row that the design expects, scaled to the targets' sum.

    A design that is optimal for the sum of sizes times targets draws in proportion to size times the standard deviation of the
    target (Isaki and Fuller 1982), so that the rarer kind of target has odds in proportion to ``1 / size ** 2``. Where sizes are
    equal, all rows have the mean target.

    Args:
        targets_N: targets in [0, 1], not all equal.
        sizes_N: what each row represents: its mass over its inclusion probability, at least 0.
    """
    rare_N = targets_N if targets_N.mean() <= 0.5 else 1 - targets_N
    offset_N = -2 * _logs(sizes_N)
    offset_N -= offset_N.mean()
    expected_N = _fitted(np.ones((len(rare_N), 1)), rare_N, np.zeros(1), offset_N)
    return expected_N if rare_N is targets_N else 1 - expected_N


def targets_by_predictions(targets_N: Floats, predictions_N: Floats, sizes_N: Floats) -> Floats | None:
    """Return the expected target of each row by logistic regression on the logit of its prediction and the log of its size.

    Args:
        targets_N: targets in [0, 1].
        predictions_N: predictions in [0, 1].
        sizes_N: what each row represents.

    Returns:
        ``None`` for predictions that are not clearly related to the targets.
    """
    clipped_N = np.clip(predictions_N, 1e-6, 1 - 1e-6)
    columns = [np.log(clipped_N / (1 - clipped_N)), _logs(sizes_N)]
    scaled = [(of - of.mean()) / (of.std() + 1e-12) for of in columns]
    apart_N = targets_N - targets_N.mean()
    if float((scaled[0] * apart_N).sum()) < LEAST_Z * float(np.sqrt((apart_N**2).sum())):
        return None
    penalty_K = np.array([INTERCEPT_PENALTY, SLOPE_PENALTY, SLOPE_PENALTY])
    return _fitted(np.stack([np.ones(len(targets_N)), *scaled], axis=1), targets_N, penalty_K, np.zeros(len(targets_N)))


def _logs(sizes_N: Floats) -> Floats:
    """Return the logarithms of sizes; 0 counts as half of the least size above it."""
    least = float(sizes_N[sizes_N > 0].min(initial=np.inf))
    found_N: Floats = np.log(np.maximum(sizes_N, 0.5 * least if np.isfinite(least) else 1.0))
    return found_N


def _fitted(design_NK: Floats, targets_N: Floats, penalty_K: Floats, offset_N: Floats) -> Floats:
    """Return the expected targets of a ridge logistic regression by Newton's method; the first column is the intercept's."""
    share = (float(targets_N.sum()) + 0.5) / (len(targets_N) + 1)
    start_K = np.zeros(design_NK.shape[1])
    start_K[0] = np.log(share / (1 - share))
    found_K = start_K.copy()
    for _ in range(MAX_ITERATIONS):
        expected_N = _logistic(design_NK @ found_K + offset_N)
        information_KK = design_NK.T @ (design_NK * (expected_N * (1 - expected_N) + 1e-9)[:, None]) + np.diag(penalty_K)
        gradient_K = design_NK.T @ (targets_N - expected_N) - penalty_K * (found_K - start_K)
        step_K = np.clip(np.linalg.solve(information_KK, gradient_K), -MAX_STEP, MAX_STEP)
        found_K += step_K
        if np.abs(step_K).max() < TOLERANCE:
            break
    return _logistic(design_NK @ found_K + offset_N)


def _logistic(values_N: Floats) -> Floats:
    found_N: Floats = 1 / (1 + np.exp(-np.clip(values_N, -50, 50)))
    return found_N
