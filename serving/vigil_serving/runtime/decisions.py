"""Decisions from the graphs' probabilities: calibration, thresholds, policy, and the evidence for each decision."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.decode import Decoder
from vigil_data.decode.text_spans import MarkedSpan, marked_spans
from vigil_data.items import Item, Modality
from vigil_data.loading.packing import Packed, Span
from vigil_data.presence import presence_of_segments
from vigil_evaluation.policy.compiled_policy import Reason
from vigil_serving.bundle.load import ExportedModel
from vigil_serving.runtime.onnx_sessions import GraphOutputs


@dataclass(frozen=True, slots=True)
class SegmentEvidence:
    """Attention weight of one segment for one label.

    Attributes:
        label: the label.
        modality: the segment's modality.
        span: index of the text, image or sound, and the segment's place in it (characters or seconds).
        weight: share of the item's evidence for the label, in [0, 1]; the weights of an item and of its prior sum to 1.
    """

    label: str
    modality: Modality
    span: Span
    weight: float


@dataclass(frozen=True, slots=True)
class TruncatedSegment:
    """Segment that a guard did not read to its end, because the prompt is longer than its context.

    Attributes:
        modality: the segment's modality.
        span: index of the text, image or sound, and the segment's place in it.
        tokens: number of tokens left out, from the end of the segment.
    """

    modality: Modality
    span: Span
    tokens: int


@dataclass(frozen=True, slots=True)
class Decision:
    """Decision on one item.

    Attributes:
        id: the item's id.
        probabilities: label to calibrated probability; empty if the item could not be decoded.
        labels: the labels whose probability reaches their threshold.
        presence: the item's modalities, such as ``text+image``.
        action: action of the bundle's policy; ``None`` without a policy, or if the item could not be decoded.
        review: whether the policy sends the item to human review, in addition to the action or in place of one.
        reasons: why the policy acts, the decisive reason first.
        evidence: segments for each decided label, largest weight first.
        cut: segments (passages, images, windows) left out because of the bundle's limits.
        error: why the item could not be decoded; ``None`` if it could.
        truncated: segments that a guard did not read to their end.
        policy_text: label to the SHA-256 of the policy text that a guard read; empty for other models.
        not_evaluated: labels with a policy text that ``vigil evaluate`` has not seen with this bundle.
        uncalibrated: labels whose policy text has no calibration: the probability is the guard's own, and 0.5 decides.
        spans: characters that the model marks for each decided label; empty for bundles without a span head.
    """

    id: str
    probabilities: Mapping[str, float]
    labels: tuple[str, ...] = ()
    presence: str = "none"
    action: str | None = None
    review: bool = False
    reasons: tuple[Reason, ...] = ()
    evidence: tuple[SegmentEvidence, ...] = ()
    cut: int = 0
    error: str | None = None
    truncated: tuple[TruncatedSegment, ...] = ()
    policy_text: Mapping[str, str] = field(default_factory=dict)
    not_evaluated: tuple[str, ...] = ()
    uncalibrated: tuple[str, ...] = ()
    spans: tuple[MarkedSpan, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as a JSON-serializable dictionary."""
        return asdict(self)


class CalibratedBatch(NamedTuple):
    """Calibrated probabilities float32 ``[N, L]``, and the presence of each item, such as ``text+image``."""

    probabilities_NL: NDArray[np.float32]
    presence: list[str]


def calibrate(
    bundle: ExportedModel, raw_NL: NDArray[np.floating], packed: Packed, columns: Sequence[Mapping[str, Any]]
) -> CalibratedBatch:
    """Calibrate the graphs' probabilities; thresholds and policy apply to calibrated probabilities.

    Args:
        bundle: holds the calibration.
        raw_NL: probabilities from the graphs, ``[N, L]``.
        packed: the batch of N items.
        columns: columns of each item, such as its language.

    Returns:
        Probabilities in float32, the precision in which every consumer compares them with thresholds.
    """
    present = presence_of_segments(len(packed.ids), {m: segments.item for m, segments in packed.segments.items()})
    by = bundle.calibrated.calibration.by
    groups: list[str | None] | None = None
    if by == "presence":
        groups = list(present)
    elif by is not None:
        groups = [None if known.get(by) is None else str(known[by]) for known in columns]
    return CalibratedBatch(bundle.calibrated.calibration.apply(raw_NL.astype(np.float64), groups).astype(np.float32), present)


def decide(packed: Packed, scores: GraphOutputs, bundle: ExportedModel, columns: Sequence[Mapping[str, Any]]) -> list[Decision]:
    """Decide a batch, with evidence for every decided label and every reason of the policy.

    Args:
        packed: the batch of N items.
        scores: outputs of the graphs for the batch.
        bundle: holds calibration, thresholds and policy.
        columns: columns of each item (market, language, …).
    """
    probabilities_NL, present = calibrate(bundle, scores.probabilities_NL, packed, columns)
    labels, verdicts = bundle.labels, None
    if bundle.policy is not None:
        verdicts = bundle.policy.decide(probabilities_NL, labels, present, [known.get("market") for known in columns])
    truncated: dict[int, list[TruncatedSegment]] = {}
    for item, modality, index, tokens in scores.cut:
        place = np.flatnonzero(packed.segments[modality].item == item)[index]
        truncated.setdefault(item, []).append(TruncatedSegment(modality, packed.segments[modality].spans[place], tokens))
    texts = {} if bundle.prompt is None else {clause.label: clause.digest for clause in bundle.prompt.clauses}
    decisions = []
    for row, item_id in enumerate(packed.ids):
        probabilities = dict(zip(labels, map(float, probabilities_NL[row]), strict=True))
        decided = [label for label in labels if probabilities[label] >= bundle.thresholds[label]]
        decision = Decision(
            item_id,
            probabilities,
            tuple(decided),
            present[row],
            truncated=tuple(truncated.get(row, ())),
            policy_text=texts,
            not_evaluated=bundle.not_evaluated,
            uncalibrated=bundle.uncalibrated,
        )
        if verdicts is not None:
            verdict = verdicts[row]
            decision = replace(decision, action=verdict.action, review=verdict.review, reasons=verdict.reasons)
        explained = dict.fromkeys([*decided, *(reason.label for reason in decision.reasons)])
        decisions.append(
            replace(decision, evidence=_evidence(packed, scores, row, [(labels.index(name), name) for name in explained]))
        )
    return decisions


def spans_of(
    decision: Decision, item: Item, logits: Sequence[NDArray[np.float32]], labels: Sequence[str], decoder: Decoder
) -> tuple[MarkedSpan, ...]:
    """Return the spans of an item for the labels that are decided or are a reason.

    Args:
        decision: the decision without spans.
        item: the item, whose texts are tokenized once more for such a label.
        logits: :attr:`.GraphOutputs.spans` of the item's text segments.
        labels: the K labels with spans.
        decoder: the bundle's decoder.
    """
    explained = {*decision.labels, *(reason.label for reason in decision.reasons)}
    if not logits or explained.isdisjoint(labels):
        return ()
    places = decoder.token_places(item)
    return tuple(
        span
        for k, label in enumerate(labels)
        if label in explained
        for span in marked_spans(label, places, [logits_TK[:, k] for logits_TK in logits])
    )


def _evidence(packed: Packed, scores: GraphOutputs, row: int, of: Sequence[tuple[int, str]]) -> tuple[SegmentEvidence, ...]:
    """Evidence of one item in the order of the labels ``of`` (column, name), largest weight first."""
    found = [
        SegmentEvidence(label, modality, packed.segments[modality].spans[segment], float(weights_SL[segment, column]))
        for column, label in of
        for modality, weights_SL in scores.evidence.items()
        for segment in np.flatnonzero(packed.segments[modality].item == row)
    ]
    position = {label: place for place, (_, label) in enumerate(of)}
    return tuple(sorted(found, key=lambda e: (position[e.label], -e.weight)))
