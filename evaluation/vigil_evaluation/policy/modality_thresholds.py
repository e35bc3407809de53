"""Separate thresholds by presence pattern, where they catch more.

A model is more certain of an item with text and an image than of one with audio alone, so one threshold may be too strict for
some patterns and too lax for others. Each pattern then satisfies the constraints by itself, with a part of the error probability,
so that they hold for all patterns together. This needs more items; the gain is measured by cross-validation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vigil_data.presence import PRESENCE
from vigil_evaluation.metrics import Floats
from vigil_evaluation.policy.constraints import Rule
from vigil_evaluation.policy.policy_data import Traffic
from vigil_evaluation.policy.threshold_search import search_thresholds

FOLDS = 5
MIN_RECALL_GAIN = 0.01
"""Smallest gain of recall on held-out items."""

MIN_GAIN_STANDARD_ERRORS = 2.0
"""Smallest gain in standard errors over folds."""

MIN_POSITIVES_PER_PRESENCE = 100
"""Patterns with fewer known positives share the threshold of all others."""


@dataclass(frozen=True, slots=True)
class PresenceThresholds:
    """Thresholds by presence pattern, and a description of their gain."""

    cuts: dict[str | None, float]
    gain: str


def split_by_presence(
    traffic: Traffic, label: str, rules: Sequence[Rule], above_N: Floats, cut: float
) -> PresenceThresholds | None:
    """Find thresholds by presence pattern, if they catch more on held-out items than one for all.

    Args:
        traffic: items of a market.
        label: the label.
        rules: constraints that the label satisfies by itself, without any that keeps thresholds from rising.
        above_N: lowest threshold of a stricter action for each item.
        cut: the single threshold for all patterns.

    Returns:
        The thresholds; ``None`` if there is no gain, or a rule is for every value of a column.
    """
    if PRESENCE not in traffic.columns or any(rule.column is not None for rule in rules) or not rules:
        return None
    column, at = traffic.columns[PRESENCE], traffic.labels.index(label)
    positives = np.bincount(column.codes_N[traffic.positive_NL[:, at]], minlength=len(column.values))
    own = [i for i, count in enumerate(positives.tolist()) if count >= MIN_POSITIVES_PER_PRESENCE]
    if len(own) < 1 or len(column.values) < 2:
        return None
    codes_N = np.where(np.isin(column.codes_N, own), column.codes_N, -1)
    gains = _gains(traffic, label, rules, above_N, codes_N)
    error = gains.std(ddof=1) / np.sqrt(FOLDS)
    if gains.mean() < MIN_RECALL_GAIN or gains.mean() < MIN_GAIN_STANDARD_ERRORS * error:
        return None
    cuts = _cuts(traffic, label, rules, above_N, codes_N)
    # A pattern whose items cannot show the constraints by themselves would lose the action; then all share one threshold.
    if cuts is None or all(found == cut for found in cuts.values()):
        return None
    named: dict[str | None, float] = {None if code < 0 else column.values[code]: found for code, found in cuts.items()}
    return PresenceThresholds(
        {None: cut, **named}, f"catch {gains.mean():.1%} more of its items on held-out folds (standard error {error:.1%})"
    )


def _gains(traffic: Traffic, label: str, rules: Sequence[Rule], above_N: Floats, codes_N: NDArray[np.int32]) -> Floats:
    """Return the gain of recall in each fold; a pattern without a threshold catches nothing."""
    at = traffic.labels.index(label)
    units_N = np.arange(traffic.items) if traffic.units_N is None else traffic.units_N
    fold_N = np.random.default_rng(0).integers(0, FOLDS, int(units_N.max(initial=0)) + 1)[units_N]
    gains = np.zeros(FOLDS)
    for fold in range(FOLDS):
        train_N = fold_N != fold
        held_N = ~train_N & traffic.positive_NL[:, at]
        part = traffic.take(train_N)
        one = _lowest(part, label, rules, above_N[train_N])
        cuts = _cuts(part, label, rules, above_N[train_N], codes_N[train_N])
        if cuts is None or not held_N.any():
            continue
        probabilities, codes = traffic.probabilities_NL[held_N, at], codes_N[held_N]
        mine = np.array([cuts.get(code, np.inf) for code in codes.tolist()])
        weights_M = None if traffic.weights.label_N is None else traffic.weights.label_N[held_N]
        caught = [probabilities >= mine, probabilities >= (np.inf if one is None else one)]
        gains[fold] = np.subtract(*(np.average(hit_M, weights=weights_M) for hit_M in caught))
    return gains


def _cuts(
    traffic: Traffic, label: str, rules: Sequence[Rule], above_N: Floats, codes_N: NDArray[np.int32]
) -> Mapping[int, float] | None:
    """Return the threshold of each presence code; ``None`` if any has none."""
    present = np.unique(codes_N).tolist()
    shared = [replace(rule, confidence=1 - (1 - rule.confidence) / len(present)) for rule in rules]
    cuts = {}
    for code in present:
        rows_N = codes_N == code
        found = _lowest(traffic.take(rows_N), label, shared, above_N[rows_N])
        if found is None:
            return None
        cuts[int(code)] = found
    return cuts


def _lowest(traffic: Traffic, label: str, rules: Sequence[Rule], above_N: Floats) -> float | None:
    found = search_thresholds(traffic, label, rules, above_N, label)
    usable = np.flatnonzero(found.usable())
    return float(found.candidates.thresholds_K[usable[-1]]) if len(usable) else None
