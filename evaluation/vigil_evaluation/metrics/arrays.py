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
    targets, scores = np.asarray(targets_N, np.float64), np.asarray(scores_N, np.float64)
    if targets.ndim != 1 or targets.shape != scores.shape:
        raise ValueError(f"targets {targets.shape} and scores {scores.shape} must be vectors of one length")
    mask = ~np.isnan(targets)
    targets, scores = targets[mask], scores[mask]
    if nan := int(np.isnan(scores).sum()):
        raise ValueError(f"{nan} of {len(scores)} scores are NaN; such scores cannot be ranked")
    return targets, scores
