"""A bundle's graphs in ONNX Runtime: encoders run on the segments that exist, and the fusion joins them for each item."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from vigil_data.items import Modality
from vigil_data.loading.packing import Packed, PackedSegments
from vigil_serving.bundle.load import Bundle

RUN_LIMITS: Mapping[Modality, int] = {"text": 4096, "image": 16, "audio": 16}
"""What one run of an encoder holds at most: padded tokens of text, pictures, windows of sound."""


@dataclass(frozen=True, slots=True)
class Scores:
    """A batch's scores: ``probabilities_NL`` and, of each modality present, ``evidence[modality]`` ``[S_m, L]``, float32."""

    probabilities_NL: NDArray[np.float32]
    evidence: Mapping[Modality, NDArray[np.float32]]


SPIN = "50"
"""Microseconds; longer than from one operator to the next. Without any spinning an encoder takes a quarter longer."""


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
    # Threads that wait for an operator spin a little, and not beyond the run: they would be in the way of the next graph's.
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=list(providers))


@dataclass(frozen=True, slots=True)
class Sessions:
    """A bundle's graphs, loaded: one encoder for each modality, and the fusion."""

    encoders: Mapping[Modality, onnxruntime.InferenceSession]
    fusion: onnxruntime.InferenceSession


def open_sessions(
    bundle: Bundle,
    threads: int | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    variant: str = "fp32",
) -> Sessions:
    """Load a bundle's encoders, of one variant, and its fusion; see :func:`open_session`.

    Raises:
        UserError: if the bundle has no such variant.
    """
    files = bundle.encoders(variant)
    encoders = {m: open_session(files[m], threads, providers) for m in bundle.signature.modalities}
    return Sessions(encoders, open_session(bundle.graph("fusion"), threads, providers))


def run(sessions: Sessions, packed: Packed) -> Scores:
    """Score a packed batch of N items, running only the encoders that it needs.

    Args:
        sessions: the loaded graphs.
        packed: N items; modalities that the bundle does not take are ignored.
    """
    taken = {m: packed.segments[m] for m in sessions.encoders if m in packed.segments}
    tokens = {m: encode(sessions.encoders[m], segments, RUN_LIMITS[m]) for m, segments in taken.items()}
    return fuse(sessions, len(packed.ids), tokens, {m: segments.item for m, segments in taken.items()})


def fuse(
    sessions: Sessions, items: int, tokens: Mapping[Modality, NDArray[np.float32]], item: Mapping[Modality, NDArray[np.int64]]
) -> Scores:
    """Join the segments of each item.

    Args:
        sessions: the loaded graphs.
        items: N.
        tokens: of each modality present ``[S_m, P_m, D]``.
        item: of each modality present the items' rows, int64 ``[S_m]``.
    """
    if not items:
        return Scores(np.empty((0, sessions.fusion.get_outputs()[0].shape[1]), np.float32), {})
    shapes = {node.name: node.shape for node in sessions.fusion.get_inputs()}
    feeds: dict[str, NDArray[np.generic]] = {"rows": np.arange(items, dtype=np.int64)}
    for modality in sessions.encoders:
        if modality in tokens:
            feeds[f"{modality}_tokens"], feeds[f"{modality}_item"] = tokens[modality], item[modality]
        else:
            _, per_segment, width = shapes[f"{modality}_tokens"]
            feeds[f"{modality}_tokens"] = np.empty((0, per_segment, width), np.float32)
            feeds[f"{modality}_item"] = np.empty(0, np.int64)
    outputs = dict(zip((node.name for node in sessions.fusion.get_outputs()), sessions.fusion.run(None, feeds), strict=True))
    return Scores(outputs["probabilities"], {m: outputs[f"evidence_{m}"] for m in sessions.encoders if m in tokens})


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
