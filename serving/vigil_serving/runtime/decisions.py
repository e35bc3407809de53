"""From the graphs' probabilities to decisions: calibration, thresholds, policy, and the evidence for each."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.items import Modality, presence
from vigil_data.loading.packing import Packed, Span
from vigil_evaluation.policy.compiled_policy import Reason
from vigil_serving.bundle.load import Bundle
from vigil_serving.runtime.onnx_sessions import Scores


@dataclass(frozen=True, slots=True)
class Evidence:
    """How much one segment weighed in the decision for one label.

    Attributes:
        label: the label.
        modality: the segment's modality.
        span: which text, image or sound, and where in it (characters or seconds).
        weight: share of the item's evidence for the label, in [0, 1]; an item's weights and its prior's add up to 1.
    """

    label: str
    modality: Modality
    span: Span
    weight: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What the model says of one item.

    Attributes:
        id: the item's id.
        probabilities: label to calibrated probability; empty if the item could not be decoded.
        labels: the labels whose probability reaches their threshold.
        presence: the modalities that the item has, such as ``text+image``.
        action: what the bundle's policy does with the item; ``None`` without a policy, or if the item could not be decoded.
        review: whether the policy sends the item to people, beside or instead of an action.
        reasons: why the policy does so, the decisive one first.
        evidence: for each decided label its segments, heaviest first.
        cut: segments beyond the bundle's limits (passages, images, windows) that were left out.
        error: why the item could not be decoded; ``None`` if it could.
    """

    id: str
    probabilities: Mapping[str, float]
    labels: tuple[str, ...] = ()
    presence: str = "none"
    action: str | None = None
    review: bool = False
    reasons: tuple[Reason, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    cut: int = 0
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class Calibrated(NamedTuple):
    """Calibrated probabilities ``[N, L]``, float32, and of each item the modalities that it has."""

    probabilities_NL: NDArray[np.float32]
    presence: list[str]


def calibrate(bundle: Bundle, raw_NL: NDArray[np.floating], packed: Packed, columns: Sequence[Mapping[str, Any]]) -> Calibrated:
    """Turn the graphs' probabilities into those that thresholds and policy speak of.

    Args:
        bundle: says how.
        raw_NL: what the graphs gave.
        packed: the batch; tells which modalities each item has.
        columns: of each item, what is known of it beside its media.

    Returns:
        The calibrated probabilities in float32, as everything that decides has them, and the presence of each item.
    """
    present = _presence(packed)
    by = bundle.calibrated.calibration.by
    groups: list[str | None] | None = None
    if by == "presence":
        groups = list(present)
    elif by is not None:
        groups = [None if known.get(by) is None else str(known[by]) for known in columns]
    return Calibrated(bundle.calibrated.calibration.apply(raw_NL.astype(np.float64), groups).astype(np.float32), present)


def decide(packed: Packed, scores: Scores, bundle: Bundle, columns: Sequence[Mapping[str, Any]]) -> list[Decision]:
    """Turn a batch's scores into decisions, with the evidence for every decided label and every reason of the policy.

    Args:
        packed: the batch that was scored.
        scores: its scores.
        bundle: holds calibration, thresholds and policy.
        columns: of each item, what is known of it beside its media (market, language, …).
    """
    probabilities_NL, present = calibrate(bundle, scores.probabilities_NL, packed, columns)
    labels, verdicts = bundle.signature.labels, None
    if bundle.policy is not None:
        verdicts = bundle.policy.decide(probabilities_NL, labels, present, [known.get("market") for known in columns])
    decisions = []
    for row, item_id in enumerate(packed.ids):
        probabilities = dict(zip(labels, map(float, probabilities_NL[row]), strict=True))
        decided = [label for label in labels if probabilities[label] >= bundle.thresholds[label]]
        decision = Decision(item_id, probabilities, tuple(decided), present[row])
        if verdicts is not None:
            verdict = verdicts[row]
            decision = replace(decision, action=verdict.action, review=verdict.review, reasons=verdict.reasons)
        told = dict.fromkeys([*decided, *(reason.label for reason in decision.reasons)])
        decisions.append(
            replace(decision, evidence=_evidence(packed, scores, row, [(labels.index(name), name) for name in told]))
        )
    return decisions


def _evidence(packed: Packed, scores: Scores, row: int, of: Sequence[tuple[int, str]]) -> tuple[Evidence, ...]:
    """The segments of one item that weighed for labels, label by label, the heaviest first."""
    found = [
        Evidence(label, modality, packed.segments[modality].spans[segment], float(weights_SL[segment, column]))
        for column, label in of
        for modality, weights_SL in scores.evidence.items()
        for segment in np.flatnonzero(packed.segments[modality].item == row)
    ]
    position = {label: place for place, (_, label) in enumerate(of)}
    return tuple(sorted(found, key=lambda e: (position[e.label], -e.weight)))


def _presence(packed: Packed) -> list[str]:
    has: list[list[str]] = [[] for _ in packed.ids]
    for modality, segments in packed.segments.items():
        for row in np.unique(segments.item):
            has[row].append(modality)
    return [presence(modalities) for modalities in has]
