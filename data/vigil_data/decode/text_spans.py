"""Spans of characters as targets of tokens, and tokens that are marked as spans of characters.

Example:
    >>> places_T2 = np.array([[0, 0], [0, 3], [4, 9], [0, 0]])
    >>> token_targets(places_T2, [(4, 9)])
    array([nan,  0.,  1., nan], dtype=float32)
    >>> marked_runs(places_T2, np.array([0.9, 0.2, 0.7, 0.9]))
    [(4, 9, 0.7)]
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_PROBABILITY = 0.5
"""A token with a higher probability is marked."""

Runs = list[tuple[int, int, float]]
"""Start, stop and probability of spans."""


@dataclass(frozen=True, slots=True)
class MarkedSpan:
    """Characters of an item's text for which a label applies, as the model's span head reads them.

    Attributes:
        label: the label.
        index: which of the item's texts.
        start: first character.
        stop: one past the last character.
        probability: largest probability of a token of the span.
    """

    label: str
    index: int
    start: int
    stop: int
    probability: float


def read_spans(value: Any) -> list[tuple[int, int]]:
    """Read spans of a dataset's column, a JSON list of ``[start, stop]``.

    Raises:
        ValueError: if it is not such a list; the message is the reason.
    """
    try:
        given = json.loads(value)
        spans = [(start, stop) for start, stop in given]
    except (TypeError, ValueError):
        spans = [(1, 0)]
    if not all(type(place) is int for span in spans for place in span) or any(not 0 <= a < b for a, b in spans):
        raise ValueError("not a JSON list of [start, stop]")
    return spans


def token_targets(places_T2: NDArray[np.int64], spans: Iterable[tuple[int, int]]) -> NDArray[np.float32]:
    """Return the target of each token, float32 ``[T]``: 1 if at least half of its characters are in a span, else 0.

    Args:
        places_T2: characters of each token, see :func:`vigil_data.decode.text.token_places`.
        spans: spans that do not overlap.

    Returns:
        NaN for tokens without characters.
    """
    start_T, stop_T = places_T2.T
    covered_T = np.zeros(len(places_T2), np.int64)
    for start, stop in spans:
        covered_T += np.maximum(np.minimum(stop_T, stop) - np.maximum(start_T, start), 0)
    targets_T: NDArray[np.float32] = (2 * covered_T >= stop_T - start_T).astype(np.float32)
    targets_T[stop_T == start_T] = np.nan
    return targets_T


def marked_runs(places_T2: NDArray[np.int64], probabilities_T: NDArray[np.floating]) -> Runs:
    """Return the spans of consecutive tokens whose probability is above :data:`MIN_PROBABILITY`.

    Args:
        places_T2: see :func:`token_targets`; tokens without characters neither make a span nor end one.
        probabilities_T: probability of each token.
    """
    runs: Runs = []
    open_run = False
    for (start, stop), probability in zip(places_T2.tolist(), probabilities_T.tolist(), strict=True):
        if start == stop:
            continue
        if probability > MIN_PROBABILITY:
            first, _, highest = runs.pop() if open_run else (start, stop, probability)
            runs.append((first, stop, max(highest, probability)))
        open_run = probability > MIN_PROBABILITY
    return runs


def joined_runs(runs: Iterable[tuple[int, int, float]]) -> Runs:
    """Return spans in order, those that overlap joined; overlapping passages of a text may mark the same characters."""
    joined: Runs = []
    for start, stop, probability in sorted(runs):
        if joined and start < joined[-1][1]:
            first, last, highest = joined.pop()
            joined.append((first, max(last, stop), max(highest, probability)))
        else:
            joined.append((start, stop, probability))
    return joined


def marked_spans(
    label: str, places: Sequence[tuple[int, NDArray[np.int64]]], logits: Iterable[NDArray[np.floating]]
) -> tuple[MarkedSpan, ...]:
    """Return the spans of one item and label.

    Args:
        label: the label.
        places: for each passage of the item, which text it is of and the characters of its T tokens;
            see :meth:`vigil_data.decode.Decoder.token_places`.
        logits: for each passage, the log-odds of its tokens, ``[T]`` or longer.
    """
    runs: dict[int, Runs] = {}
    for (index, places_T2), logits_T in zip(places, logits, strict=True):
        with np.errstate(over="ignore"):
            probabilities_T = 1 / (1 + np.exp(-logits_T[: len(places_T2)].astype(np.float64)))
        runs.setdefault(index, []).extend(marked_runs(places_T2, probabilities_T))
    return tuple(MarkedSpan(label, index, *run) for index, found in sorted(runs.items()) for run in joined_runs(found))
