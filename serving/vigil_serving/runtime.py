"""From items to decisions with ONNX Runtime alone: torch is never imported here.

Each encoder runs on the segments that exist, sorted by length in runs of bounded size, and the fusion graph joins them per item:
an item pays only for what it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from vigil_data.decode import Decoder, Undecodable
from vigil_data.items import Item, Modality
from vigil_data.pack import DecodedItem, Packed, PackedSegments, Span, pack
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
        probabilities: label to probability; empty if the item could not be decoded.
        labels: the labels whose probability reaches their threshold.
        evidence: for each decided label its segments, heaviest first.
        cut: segments beyond the bundle's limits (passages, images, windows) that were left out.
        error: why the item could not be decoded; ``None`` if it could.
    """

    id: str
    probabilities: Mapping[str, float]
    labels: tuple[str, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    cut: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """A batch's scores: ``probabilities_NL`` and, of each modality present, ``evidence[modality]`` ``[S_m, L]``, float32."""

    probabilities_NL: NDArray[np.float32]
    evidence: Mapping[Modality, NDArray[np.float32]]


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


def decide(packed: Packed, scores: Scores, thresholds: Mapping[str, float]) -> list[Decision]:
    """Turn a batch's scores into decisions, with the evidence for every decided label.

    Args:
        packed: the batch that was scored.
        scores: its scores.
        thresholds: label to threshold, in the order of the scores' last axis.
    """
    decisions = []
    for row, (item_id, probabilities_L) in enumerate(zip(packed.ids, scores.probabilities_NL, strict=True)):
        probabilities = dict(zip(thresholds, map(float, probabilities_L), strict=True))
        decided = [(column, label) for column, label in enumerate(thresholds) if probabilities[label] >= thresholds[label]]
        evidence = [
            Evidence(label, modality, packed.segments[modality].spans[segment], float(weights_SL[segment, column]))
            for column, label in decided
            for modality, weights_SL in scores.evidence.items()
            for segment in np.flatnonzero(packed.segments[modality].item == row)
        ]
        position = {label: column for column, label in decided}
        evidence.sort(key=lambda e: (position[e.label], -e.weight))
        decisions.append(Decision(item_id, probabilities, tuple(position), tuple(evidence)))
    return decisions


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
            packed = pack([item for _, item in batch])
            for (place, item), decision in zip(
                batch, decide(packed, run(self.sessions, packed), self.bundle.thresholds), strict=True
            ):
                decisions[place] = replace(decision, cut=sum(item.cut.values()))
        return [decisions[place] for place in sorted(decisions)]

    def _batches(self, items: Iterable[Item], refused: dict[int, Decision]) -> Iterator[list[tuple[int, DecodedItem]]]:
        """Decoded items with their places, in batches that fusion can hold; refusals are put into ``refused``."""
        tokens = {node.name: node.shape[1] for node in self.sessions.fusion.get_inputs() if node.name.endswith("_tokens")}
        batch: list[tuple[int, DecodedItem]] = []
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
            batch.append((place, decoded))
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
