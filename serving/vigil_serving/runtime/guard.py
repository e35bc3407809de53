"""Answers of a guard's language model: prompts assembled from token ids, run in batches of bounded size.

An item's text is read as token ids, its pictures and sound as the tokens of their encoders. :func:`vigil_data.prompts.assemble`
lays out one question for each item and label in rows, as in training; a row depends on nothing outside it, so rows may run in
any batches.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from vigil_data.items import MODALITIES, Modality
from vigil_data.loading.packing import PackedSegments
from vigil_data.prompts.assemble import Cut, PromptRows, SegmentTokens, assemble, questions_all, text_tokens_of
from vigil_serving.bundle.metadata import PromptSettings
from vigil_serving.runtime.run_limits import RUN_LIMITS, split_runs, unpadded_lengths


class Answers(NamedTuple):
    """Answers to all questions about a batch of N items.

    Attributes:
        logits_NL: log-odds of the answer that each label applies, float32 ``[N, L]``.
        evidence: attention of each answer to each segment, float32 ``[S_m, L]``, for each modality present.
        cut: segments that did not fit completely into the prompt.
        spans: for each text, the log-odds that each token is in a span, float32 ``[T, K]``, -inf for a token that is not in the
            prompt; empty without a span head, or without text.
    """

    logits_NL: NDArray[np.float32]
    evidence: dict[Modality, NDArray[np.float32]]
    cut: tuple[Cut, ...]
    spans: Sequence[NDArray[np.float32]] = ()


def ask(
    language_model: onnxruntime.InferenceSession,
    prompt: PromptSettings,
    items: int,
    tokens: Mapping[Modality, Sequence[NDArray[Any]]],
    segments: Mapping[Modality, PackedSegments],
    *,
    spans: Sequence[int] = (),
) -> Answers:
    """Ask whether each label applies to each item.

    Args:
        language_model: the graph of the language model.
        prompt: how to ask, with the text of each label.
        items: number of items N.
        tokens: for each modality present, the token ids of each text, or the tokens ``[P, D]`` of each other segment.
        segments: the segments of each modality present.
        spans: the labels with spans, by their place in the taxonomy; empty without a span head.
    """
    rows = lay_out(prompt, items, tokens, segments)
    labels = len(prompt.clauses)
    counts = [len(tokens[m]) if m in tokens else 0 for m in MODALITIES]
    logits = np.zeros(items * labels, np.float32)
    evidence_SL = np.zeros((sum(counts), labels), np.float32)
    shared = shared_inputs(language_model, tokens)
    texts = tokens.get("text", ()) if spans else ()
    marked = [np.full((len(text), len(spans)), -np.inf, np.float32) for text in texts]
    for feeds in runs(rows):
        outputs = language_model.run(["logits", "evidence", *(["spans"] if spans else [])], {**feeds, **shared})
        logits[feeds["answer"]] = outputs[0]
        evidence_SL += outputs[1]
        if marked:
            found = text_tokens_of(PromptRows(**feeds, cut=()), spans, labels, len(logits))
            values_M = outputs[2][found.row, found.column, found.label]
            for segment in np.unique(found.segment).tolist():
                own_M = found.segment == segment
                marked[segment][found.token[own_M], found.label[own_M]] = values_M[own_M]
    parts = dict(zip(MODALITIES, np.split(evidence_SL, np.cumsum(counts)[:-1]), strict=True))
    return Answers(logits.reshape(items, labels), {m: parts[m] for m in tokens}, rows.cut, marked)


def lay_out(
    prompt: PromptSettings,
    items: int,
    tokens: Mapping[Modality, Sequence[NDArray[Any]]],
    segments: Mapping[Modality, PackedSegments],
) -> PromptRows:
    """Return the rows of all prompts of a batch; see :func:`ask` for the arguments."""
    read: dict[Modality, SegmentTokens] = {}
    for modality, of in tokens.items():
        lengths_S = np.array([len(one) for one in of], np.int64)
        ids_ST: NDArray[np.int64] | None = None
        if modality == "text":
            mask_ST = np.arange(lengths_S.max()) < lengths_S[:, None]
            ids_ST = np.zeros(mask_ST.shape, np.int64)
            ids_ST[mask_ST] = np.concatenate(of)
        read[modality] = SegmentTokens(segments[modality].item, segments[modality].role, lengths_S, ids_ST)
    return assemble(prompt.pieces, prompt.clauses, questions_all(items, len(prompt.clauses)), read)


def runs(rows: PromptRows) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the rows of a batch in runs of similar length, as inputs of the language model, each cut to its longest row."""
    lengths_R = unpadded_lengths(rows.block > 0)
    for rows_R in split_runs(np.argsort(lengths_R, kind="stable"), lengths_R, RUN_LIMITS["text"]):
        tokens, blocks = int(lengths_R[rows_R].max()), int(rows.block[rows_R].max()) + 1
        place_R = np.full(len(lengths_R), -1, np.int64)
        place_R[rows_R] = np.arange(len(rows_R))
        answers_A = np.flatnonzero(place_R[rows.answer_row] >= 0)
        yield {
            **{name: getattr(rows, name)[rows_R, :tokens] for name in ("input_ids", "soft", "position", "block", "segment")},
            "sees": rows.sees[rows_R, :blocks, :blocks],
            "answer_row": place_R[rows.answer_row[answers_A]],
            "answer_column": rows.answer_column[answers_A],
            "answer": rows.answer[answers_A],
        }


def shared_inputs(
    language_model: onnxruntime.InferenceSession, tokens: Mapping[Modality, Sequence[NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """Return the inputs that all runs of a batch share.

    Returns:
        ``segments``, one entry for each segment, and for a model that takes them ``soft_tokens``, those of pictures, then of
        sound, float32 ``[K, D]``.
    """
    shared: dict[str, NDArray[Any]] = {"segments": np.arange(sum(map(len, tokens.values())), dtype=np.int64)}
    shapes = {node.name: node.shape for node in language_model.get_inputs()}
    if "soft_tokens" in shapes:
        parts = [np.concatenate(tokens[m]) for m in MODALITIES if m in tokens and m != "text"]
        shared["soft_tokens"] = np.concatenate([np.empty((0, shapes["soft_tokens"][1]), np.float32), *parts])
    return shared


def token_ids(segments: PackedSegments) -> list[NDArray[np.int64]]:
    """Return the token ids of each text without padding."""
    ids_ST, mask_ST = (segments.inputs[name].astype(np.int64) for name in ("input_ids", "attention_mask"))
    return [ids_T[:length] for ids_T, length in zip(ids_ST, mask_ST.sum(1), strict=True)]
