"""Bundle graphs in ONNX Runtime: encoders run on the segments that exist, fusion joins the segments of each item."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from vigil_data.items import Modality
from vigil_data.loading.packing import NO_SEGMENTS, Packed, PackedSegments
from vigil_serving.bundle.load import ExportedModel

RUN_LIMITS: Mapping[Modality, int] = {"text": 4096, "image": 16, "audio": 16}
"""Maximum size of one encoder run: padded tokens of text, images, audio windows."""


@dataclass(frozen=True, slots=True)
class GraphOutputs:
    """Outputs of the fusion graph for a batch.

    Attributes:
        probabilities_NL: probabilities before calibration, float32 ``[N, L]``.
        evidence: weight of each segment for each label, float32 ``[S_m, L]``, for each modality present.
    """

    probabilities_NL: NDArray[np.float32]
    evidence: Mapping[Modality, NDArray[np.float32]]


SPIN_DURATION_US = "50"
"""Longer than the time between two operators; without spinning an encoder takes 25 % longer."""


def open_session(
    path: Path, threads: int | None = None, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> onnxruntime.InferenceSession:
    """Load one graph into ONNX Runtime.

    Args:
        path: the .onnx file.
        threads: threads within an operator (default: all cores).
        providers: execution providers in order of preference.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # warnings are about graph optimisation, which the user cannot change
    # Threads spin briefly between operators, but not beyond the run: they would slow down the next graph's threads.
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_DURATION_US)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=list(providers))


@dataclass(frozen=True, slots=True)
class Sessions:
    """Loaded graphs of a bundle: one encoder for each modality, and fusion."""

    encoders: Mapping[Modality, onnxruntime.InferenceSession]
    fusion: onnxruntime.InferenceSession


def open_sessions(
    model: ExportedModel,
    threads: int | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    variant: str = "fp32",
) -> Sessions:
    """Load the encoders of one variant and the fusion graph of an exported model or bundle; see :func:`open_session`.

    Raises:
        UserError: if there is no such variant.
    """
    files = model.encoders(variant)
    encoders = {m: open_session(files[m], threads, providers) for m in model.modalities}
    return Sessions(encoders, open_session(model.graph("fusion"), threads, providers))


def run(sessions: Sessions, packed: Packed) -> GraphOutputs:
    """Run the graphs on a packed batch of N items; encoders without segments do not run.

    Args:
        sessions: the loaded graphs.
        packed: N items; modalities without an encoder in the bundle are ignored.
    """
    taken = {m: packed.segments[m] for m in sessions.encoders if m in packed.segments}
    tokens = {m: encode(sessions.encoders[m], segments, RUN_LIMITS[m]) for m, segments in taken.items()}
    return fuse(sessions, len(packed.ids), tokens, taken)


def fuse(
    sessions: Sessions,
    items: int,
    tokens: Mapping[Modality, NDArray[np.float32]],
    segments: Mapping[Modality, PackedSegments],
) -> GraphOutputs:
    """Run the fusion graph, which joins the segments of each item.

    Args:
        sessions: the loaded graphs.
        items: number of items N.
        tokens: encoded segments ``[S_m, P_m, D]`` for each modality present.
        segments: the segments of each modality present, for their items, roles and times.
    """
    if not items:
        return GraphOutputs(np.empty((0, sessions.fusion.get_outputs()[0].shape[1]), np.float32), {})
    shapes = {node.name: node.shape for node in sessions.fusion.get_inputs()}
    feeds: dict[str, NDArray[np.generic]] = {"rows": np.arange(items, dtype=np.int64)}
    for modality in sessions.encoders:
        _, per_segment, width = shapes[f"{modality}_tokens"]
        feeds[f"{modality}_tokens"] = tokens.get(modality, np.empty((0, per_segment, width), np.float32))
        placement = (segments[modality] if modality in tokens else NO_SEGMENTS).placement(modality, shapes)
        feeds |= {f"{modality}_{name}": array for name, array in placement.items()}
    outputs = dict(zip((node.name for node in sessions.fusion.get_outputs()), sessions.fusion.run(None, feeds), strict=True))
    return GraphOutputs(outputs["probabilities"], {m: outputs[f"evidence_{m}"] for m in sessions.encoders if m in tokens})


def encode(session: onnxruntime.InferenceSession, segments: PackedSegments, limit: int) -> NDArray[np.float32]:
    """Encode segments in runs of similar length.

    Args:
        session: one encoder.
        segments: S segments, S > 0.
        limit: maximum size of one run: padded tokens if there is an attention mask, otherwise segments.

    Returns:
        Tokens float32 ``[S, P, D]`` in the order of the segments.
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
    """Length of each passage up to its last unmasked token, at least 1."""
    positions = np.arange(1, mask_ST.shape[1] + 1, dtype=np.int64)
    lengths_S: NDArray[np.int64] = np.maximum((mask_ST.astype(np.int64) * positions).max(axis=1), 1)
    return lengths_S


def _runs(order: NDArray[np.int64], lengths: NDArray[np.int64], limit: int) -> Iterator[NDArray[np.int64]]:
    """Split ``order`` (ascending in length) where one more row would pad the run beyond ``limit``."""
    start = 0
    for stop in range(1, len(order) + 1):
        if stop == len(order) or (stop + 1 - start) * lengths[order[stop]] > limit:
            yield order[start:stop]
            start = stop
