"""Prompts of a batch, each complete: what a server is sent, and what a guard's rows hold in blocks."""

from typing import NamedTuple

import numpy as np

from vigil_data.items import Modality
from vigil_data.loading.packing import Packed
from vigil_data.prompts.assemble import Cut, SegmentTokens, assemble, paths, questions_all, text_tokens
from vigil_serving.bundle.metadata import PromptSettings


class BatchPrompts(NamedTuple):
    """Prompts of all questions about a batch.

    Attributes:
        ids: number of the answer, ``item * L + label``, to the token ids of its prompt.
        cut: segments that were shortened.
    """

    ids: dict[int, tuple[int, ...]]
    cut: tuple[Cut, ...]


def batch_prompts(prompt: PromptSettings, packed: Packed) -> BatchPrompts:
    """Return the prompt of each item and label.

    Args:
        prompt: how the guard asks, with the text of each label.
        packed: at least one item; its texts are read.
    """
    segments: dict[Modality, SegmentTokens] = {}
    if (texts := packed.segments.get("text")) is not None:
        ids_ST, mask_ST = (texts.inputs[name].astype(np.int64) for name in ("input_ids", "attention_mask"))
        segments["text"] = text_tokens(texts.item, texts.role, ids_ST, mask_ST)
    rows = assemble(prompt.pieces, prompt.clauses, questions_all(len(packed.ids), len(prompt.clauses)), segments)
    found = zip(rows.answer.tolist(), rows.answer_row.tolist(), paths(rows), strict=True)
    return BatchPrompts({answer: tuple(rows.input_ids[row, columns].tolist()) for answer, row, columns in found}, rows.cut)
