"""Bundle graphs in ONNX Runtime: encoders run on the segments that exist, fusion joins the segments of each item.

A guard's graph ``text`` is its language model, which reads prompts (:mod:`vigil_serving.runtime.guard`) instead of passages, and
its graph ``fusion`` takes the log-odds of the answers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from vigil_data.items import Modality
from vigil_data.loading.packing import NO_SEGMENTS, Packed, PackedSegments
from vigil_data.prompts.assemble import Cut
from vigil_serving.bundle.load import ExportedModel
from vigil_serving.bundle.metadata import PromptSettings
from vigil_serving.runtime.guard import ask, lay_out, runs, shared_inputs, token_ids
from vigil_serving.runtime.run_limits import RUN_LIMITS, split_runs, unpadded_lengths


@dataclass(frozen=True, slots=True)
class GraphOutputs:
    """Outputs of the fusion graph for a batch.

    Attributes:
        probabilities_NL: probabilities before calibration, float32 ``[N, L]``.
        evidence: weight of each segment for each label, float32 ``[S_m, L]``, for each modality present.
        cut: segments that did not fit completely into a guard's prompt.
        spans: for each text segment, the log-odds that each token is in a span, float32 ``[T, K]``, -inf for a token that a guard
            did not read; empty without a span head, or without text.
    """

    probabilities_NL: NDArray[np.float32]
    evidence: Mapping[Modality, NDArray[np.float32]]
    cut: tuple[Cut, ...] = ()
    spans: Sequence[NDArray[np.float32]] = ()


class MarkedTokens(NamedTuple):
    """Tokens ``[P, D]`` of a text segment, and the log-odds ``[T, K]`` that each of its T token ids is in a span."""

    tokens_PD: NDArray[Any]
    spans_TK: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return self.tokens_PD.nbytes + self.spans_TK.nbytes

    def copy(self) -> "MarkedTokens":
        """Return the same with arrays of its own."""
        return MarkedTokens(self.tokens_PD.copy(), self.spans_TK.copy())


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
    """Loaded graphs of a bundle.

    Attributes:
        encoders: one for each modality; ``text`` is the language model of a guard.
        fusion: joins the segments of each item.
        prompt: how a guard asks; ``None`` for a fusion model.
        spans: the labels with spans, by their place in the taxonomy.
    """

    encoders: Mapping[Modality, onnxruntime.InferenceSession]
    fusion: onnxruntime.InferenceSession
    prompt: PromptSettings | None = None
    spans: tuple[int, ...] = ()

    def encode(self, modality: Modality, segments: PackedSegments) -> Sequence[Any]:
        """Return the tokens of each segment.

        They are ``[P, D]`` from its encoder, :class:`MarkedTokens` of a text if there is a span head, or the token ids ``[T]`` of
        a guard's text.

        Args:
            modality: the modality of the segments.
            segments: S segments, S > 0.
        """
        if self.asks_with(modality):
            return token_ids(segments)
        if modality == "text" and self.spans:
            return encode_marked(self.encoders[modality], segments, RUN_LIMITS[modality])
        return list(encode(self.encoders[modality], segments, RUN_LIMITS[modality]))

    def asks_with(self, modality: Modality) -> bool:
        """Whether the graph of a modality is a guard's language model, which runs for every item."""
        return modality == "text" and self.prompt is not None

    def tokens_per_segment(self, modality: Modality) -> int:
        """Return the tokens of a segment in the fusion; 0 for a guard's text, whose prompts are limited on their own."""
        if self.prompt is None:
            return int(next(node.shape[1] for node in self.fusion.get_inputs() if node.name == f"{modality}_tokens"))
        return 0 if modality == "text" else int(self.encoders[modality].get_outputs()[0].shape[1])


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
    spans = tuple(model.labels.index(label) for label in model.spans)
    return Sessions(encoders, open_session(model.graph("fusion"), threads, providers), model.prompt, spans)


def run(sessions: Sessions, packed: Packed) -> GraphOutputs:
    """Run the graphs on a packed batch of N items; encoders without segments do not run.

    Args:
        sessions: the loaded graphs.
        packed: N items; modalities without an encoder in the bundle are ignored.
    """
    taken = {m: packed.segments[m] for m in sessions.encoders if m in packed.segments}
    tokens = {m: sessions.encode(m, segments) for m, segments in taken.items()}
    return fuse(sessions, len(packed.ids), tokens, taken)


def prompt_runs(sessions: Sessions, packed: Packed) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the inputs of each run of a guard's language model for a batch."""
    assert sessions.prompt is not None
    tokens = {m: sessions.encode(m, packed.segments[m]) for m in sessions.encoders if m in packed.segments}
    shared = shared_inputs(sessions.encoders["text"], tokens)
    for feeds in runs(lay_out(sessions.prompt, len(packed.ids), tokens, packed.segments)):
        yield {**feeds, **shared}


def fuse(
    sessions: Sessions,
    items: int,
    tokens: Mapping[Modality, Sequence[Any]],
    segments: Mapping[Modality, PackedSegments],
) -> GraphOutputs:
    """Run the fusion graph, which joins the segments of each item; a guard's language model answers before.

    Args:
        sessions: the loaded graphs.
        items: number of items N.
        tokens: for each modality present, the tokens of each segment; see :meth:`Sessions.encode`.
        segments: the segments of each modality present, for their items, roles and times.
    """
    if not items:
        return GraphOutputs(np.empty((0, sessions.fusion.get_outputs()[0].shape[1]), np.float32), {})
    if sessions.prompt is not None:
        answers = ask(sessions.encoders["text"], sessions.prompt, items, tokens, segments, spans=sessions.spans)
        probabilities_NL: NDArray[np.float32] = sessions.fusion.run(None, {"logits": answers.logits_NL})[0]
        return GraphOutputs(probabilities_NL, answers.evidence, answers.cut, answers.spans)
    marked: Sequence[NDArray[np.float32]] = ()
    if sessions.spans and "text" in tokens:
        marked = [one.spans_TK for one in tokens["text"]]
        tokens = {**tokens, "text": [one.tokens_PD for one in tokens["text"]]}
    shapes = {node.name: node.shape for node in sessions.fusion.get_inputs()}
    feeds: dict[str, NDArray[np.generic]] = {"rows": np.arange(items, dtype=np.int64)}
    for modality in sessions.encoders:
        _, per_segment, width = shapes[f"{modality}_tokens"]
        nothing = np.empty((0, per_segment, width), np.float32)
        feeds[f"{modality}_tokens"] = np.stack(tokens[modality]) if modality in tokens else nothing
        placement = (segments[modality] if modality in tokens else NO_SEGMENTS).placement(modality, shapes)
        feeds |= {f"{modality}_{name}": array for name, array in placement.items()}
    outputs = dict(zip((node.name for node in sessions.fusion.get_outputs()), sessions.fusion.run(None, feeds), strict=True))
    evidence = {m: outputs[f"evidence_{m}"] for m in sessions.encoders if m in tokens}
    return GraphOutputs(outputs["probabilities"], evidence, spans=marked)


def encode(session: onnxruntime.InferenceSession, segments: PackedSegments, limit: int) -> NDArray[np.float32]:
    """Encode segments in runs of similar length.

    Args:
        session: one encoder.
        segments: S segments, S > 0.
        limit: maximum size of one run: padded tokens if there is an attention mask, otherwise segments.

    Returns:
        Tokens float32 ``[S, P, D]`` in the order of the segments.
    """
    pieces, order = [], []
    for rows, outputs in _encoder_runs(session, segments, limit):
        pieces.append(outputs[0])
        order.append(rows)
    sorted_SPD = np.concatenate(pieces)
    tokens_SPD = np.empty_like(sorted_SPD)
    tokens_SPD[np.concatenate(order)] = sorted_SPD
    return tokens_SPD


def encode_marked(session: onnxruntime.InferenceSession, segments: PackedSegments, limit: int) -> list[MarkedTokens]:
    """Encode texts by an encoder with a span head; see :func:`encode`."""
    lengths = unpadded_lengths(segments.inputs["attention_mask"])
    found: dict[int, MarkedTokens] = {}
    for rows, (tokens_SPD, spans_STK) in _encoder_runs(session, segments, limit):
        for place, row in enumerate(rows.tolist()):
            found[row] = MarkedTokens(tokens_SPD[place], spans_STK[place, : lengths[row]])
    return [found[row] for row in range(len(found))]


def _encoder_runs(
    session: onnxruntime.InferenceSession, segments: PackedSegments, limit: int
) -> Iterator[tuple[NDArray[np.int64], Sequence[NDArray[Any]]]]:
    """Yield the rows of each run of similar length, and the encoder's outputs for them."""
    mask = segments.inputs.get("attention_mask")
    lengths = np.ones(len(segments.item), np.int64) if mask is None else unpadded_lengths(mask)
    for rows in split_runs(np.argsort(lengths, kind="stable"), lengths, limit):
        longest = int(lengths[rows].max())
        feeds = {name: array[rows] if mask is None else array[rows, :longest] for name, array in segments.inputs.items()}
        yield rows, session.run(None, feeds)
