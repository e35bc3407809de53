"""Array types, and the mask of known targets."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def known_items(targets_N: ArrayLike, scores_N: ArrayLike) -> tuple[Floats, Floats]:
    """Return the targets and scores of the items with a known target, ``[K]`` each.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        scores_N: higher means more likely positive; logits or probabilities.

    Raises:
        ValueError: if the shapes differ, or if the score of a known target is NaN.
    """
    return weighted_items(targets_N, scores_N, None)[:2]


def weighted_items(
    targets_N: ArrayLike, scores_N: ArrayLike, weights_N: ArrayLike | None
) -> tuple[Floats, Floats, Floats | None]:
    """Return the targets, scores and weights of the items with a known target and a weight, ``[K]`` each.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        scores_N: higher means more likely positive; logits or probabilities.
        weights_N: number of items that each represents, finite and at least 0; ``None`` for 1 each.

    Raises:
        ValueError: if the shapes differ, if the score of a known target is NaN, or if a weight is negative or not finite.
    """
    targets, scores = np.asarray(targets_N, np.float64), np.asarray(scores_N, np.float64)
    if targets.ndim != 1 or targets.shape != scores.shape:
        raise ValueError(f"targets {targets.shape} and scores {scores.shape} must be vectors of one length")
    mask, weights = ~np.isnan(targets), None
    if weights_N is not None:
        weights = np.asarray(weights_N, np.float64)
        if weights.shape != targets.shape or not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError(f"weights {weights.shape} must be {len(targets)} finite numbers of at least 0")
        mask &= weights > 0
        weights = weights[mask]
    targets, scores = targets[mask], scores[mask]
    if nan := int(np.isnan(scores).sum()):
        raise ValueError(f"{nan} of {len(scores)} scores are NaN; such scores cannot be ranked")
    return targets, scores, weights


def effective_items(weights: ArrayLike) -> float:
    """Return the number of equally weighted items that would estimate a mean as precisely (Kish 1965); 0 without weights."""
    given = np.asarray(weights, np.float64)
    squares = float((given**2).sum())
    return float(given.sum()) ** 2 / squares if squares else 0.0
