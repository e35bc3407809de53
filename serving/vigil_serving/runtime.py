"""From items to decisions with ONNX Runtime alone: torch is never imported here.

Each encoder runs on the segments that exist, sorted by length in runs of bounded size, and the fusion graph joins them per item:
an item pays only for what it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from vigil_data.decode import Decoder, Undecodable
from vigil_data.items import Item, Modality, presence
from vigil_data.pack import DecodedItem, Packed, PackedSegments, Span, pack
from vigil_evaluation.policy.compiled import Reason
from vigil_serving.bundle import Bundle, read

# What one run of an encoder holds at most: padded tokens of text, pictures, windows of sound.
RUN_LIMITS: Mapping[Modality, int] = {"text": 4096, "image": 16, "audio": 16}
# Fusion's attention is quadratic in the tokens of a batch: 2048 squared times a few heads stays under 100 MB.
FUSION_TOKENS = 2048
FUSION_ITEMS = 64


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


@dataclass(frozen=True, slots=True)
class Scores:
    """A batch's scores: ``probabilities_NL`` and, of each modality present, ``evidence[modality]`` ``[S_m, L]``, float32."""

    probabilities_NL: NDArray[np.float32]
    evidence: Mapping[Modality, NDArray[np.float32]]


class Calibrated(NamedTuple):
    """Calibrated probabilities ``[N, L]``, float32, and of each item the modalities that it has."""

    probabilities_NL: NDArray[np.float32]
    presence: list[str]


@dataclass(frozen=True, slots=True)
class Sessions:
    """A bundle's graphs, loaded: one encoder for each modality, and the fusion."""

    encoders: Mapping[Modality, onnxruntime.InferenceSession]
    fusion: onnxruntime.InferenceSession


def open_session(
    path: Path, threads: int | None = None, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> onnxruntime.InferenceSession:
    """Load one graph into ONNX Runtime.

    Args:
        path: the .onnx file.
        threads: threads within an operator; ONNX Runtime's default (all cores) if ``None``.
        providers: execution providers in order of preference.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # warnings speak of the graph's optimisation, which its user cannot change
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=list(providers))


def open_sessions(bundle: Bundle, threads: int | None = None, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Sessions:
    """Load a bundle's encoders and its fusion; see :func:`open_session`."""
    encoders = {m: open_session(bundle.graph(m), threads, providers) for m in bundle.signature.modalities}
    return Sessions(encoders, open_session(bundle.graph("fusion"), threads, providers))


def run(sessions: Sessions, packed: Packed) -> Scores:
    """Score a packed batch of N items, running only the encoders that it needs.

    Args:
        sessions: the loaded graphs.
        packed: N items; modalities that the bundle does not take are ignored.
    """
    if not packed.ids:
        labels = sessions.fusion.get_outputs()[0].shape[1]
        return Scores(np.empty((0, labels), np.float32), {})
    shapes = {node.name: node.shape for node in sessions.fusion.get_inputs()}
    feeds: dict[str, NDArray[np.generic]] = {"rows": np.arange(len(packed.ids), dtype=np.int64)}
    for modality, session in sessions.encoders.items():
        segments = packed.segments.get(modality)
        if segments is None:
            _, tokens, width = shapes[f"{modality}_tokens"]
            feeds[f"{modality}_tokens"] = np.empty((0, tokens, width), np.float32)
            feeds[f"{modality}_item"] = np.empty(0, np.int64)
        else:
            feeds[f"{modality}_tokens"] = encode(session, segments, RUN_LIMITS[modality])
            feeds[f"{modality}_item"] = segments.item
    outputs = dict(zip((node.name for node in sessions.fusion.get_outputs()), sessions.fusion.run(None, feeds), strict=True))
    evidence = {m: outputs[f"evidence_{m}"] for m in sessions.encoders if m in packed.segments}
    return Scores(outputs["probabilities"], evidence)


def encode(session: onnxruntime.InferenceSession, segments: PackedSegments, limit: int) -> NDArray[np.float32]:
    """Encode segments in runs of similar length.

    Args:
        session: one encoder.
        segments: S segments, S > 0.
        limit: the most that one run holds: padded tokens where there is an attention mask, else segments.

    Returns:
        float32 ``[S, P, D]`` in the order given.
    """
    mask = segments.inputs.get("attention_mask")
    lengths = np.ones(len(segments.item), np.int64) if mask is None else _lengths(mask)
    pieces, order = [], np.argsort(lengths, kind="stable")
    for rows in _runs(order, lengths, limit):
        longest = int(lengths[rows].max())
        feeds = {name: array[rows] if mask is None else array[rows, :longest] for name, array in segments.inputs.items()}
        pieces.append(session.run(None, feeds)[0])
    sorted_SPD = np.concatenate(pieces)
    tokens_SPD = np.empty_like(sorted_SPD)
    tokens_SPD[order] = sorted_SPD
    return tokens_SPD


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


class _Member(NamedTuple):
    """An item of a batch and its place among all."""

    place: int
    item: Item
    decoded: DecodedItem


class Scorer:
    """A bundle, ready to decide.

    Args:
        bundle: a bundle or its folder; hashes are not recomputed (see :func:`vigil_serving.bundle.check_files`).
        threads: see :func:`open_session`.
        providers: see :func:`open_session`.

    Raises:
        UserError: if the folder is not a bundle.
    """

    def __init__(
        self, bundle: Bundle | Path, threads: int | None = None, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else read(bundle)
        self.sessions = open_sessions(self.bundle, threads, providers)
        self.decoder = Decoder(self.bundle.inputs, self.bundle.signature.labels)

    def score(self, items: Iterable[Item]) -> list[Decision]:
        """Decide each item, in the order given; memory holds one batch of decoded items at a time.

        An item that cannot be decoded gets a decision with the reason in ``error`` and no probabilities.
        """
        decisions: dict[int, Decision] = {}
        for batch in self._batches(items, decisions):
            packed = pack([member.decoded for member in batch])
            made = decide(packed, run(self.sessions, packed), self.bundle, [member.item.columns for member in batch])
            for member, decision in zip(batch, made, strict=True):
                decisions[member.place] = replace(decision, cut=sum(member.decoded.cut.values()))
        return [decisions[place] for place in sorted(decisions)]

    def raw_probabilities(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """What the graphs say of items, before calibration, ``[N, L]``; NaN for an item that cannot be decoded."""
        raw_NL = np.full((len(items), len(self.bundle.signature.labels)), np.nan, np.float32)
        for batch in self._batches(items, {}):
            scores = run(self.sessions, pack([member.decoded for member in batch]))
            raw_NL[[member.place for member in batch]] = scores.probabilities_NL
        return raw_NL

    def _batches(self, items: Iterable[Item], refused: dict[int, Decision]) -> Iterator[list[_Member]]:
        """Decoded items with their places, in batches that fusion can hold; refusals are put into ``refused``."""
        tokens = {node.name: node.shape[1] for node in self.sessions.fusion.get_inputs() if node.name.endswith("_tokens")}
        batch: list[_Member] = []
        held = 0
        for place, item in enumerate(items):
            try:
                decoded = self.decoder.decode(item)
            except Undecodable as error:
                refused[place] = Decision(item.id, {}, error=str(error))
                continue
            size = 1 + sum(len(segments.arrays) * tokens[f"{modality}_tokens"] for modality, segments in decoded.segments.items())
            if batch and (held + size > FUSION_TOKENS or len(batch) == FUSION_ITEMS):
                yield batch
                batch, held = [], 0
            batch.append(_Member(place, item, decoded))
            held += size
        if batch:
            yield batch


def _lengths(mask_ST: NDArray[np.generic]) -> NDArray[np.int64]:
    """One past the last token that counts, at least 1."""
    positions = np.arange(1, mask_ST.shape[1] + 1, dtype=np.int64)
    lengths_S: NDArray[np.int64] = np.maximum((mask_ST.astype(np.int64) * positions).max(axis=1), 1)
    return lengths_S


def _runs(order: NDArray[np.int64], lengths: NDArray[np.int64], limit: int) -> Iterator[NDArray[np.int64]]:
    """Cut ``order`` (ascending in length) where one more row would pad the run beyond ``limit``."""
    start = 0
    for stop in range(1, len(order) + 1):
        if stop == len(order) or (stop + 1 - start) * lengths[order[stop]] > limit:
            yield order[start:stop]
            start = stop
