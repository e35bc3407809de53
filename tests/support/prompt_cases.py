"""Pieces, clauses and segments of prompts whose token ids show what they are."""

import numpy as np

from vigil_data.items import MODALITIES, ROLES
from vigil_data.prompts.assemble import SegmentTokens
from vigil_data.prompts.clauses import Clause
from vigil_data.prompts.pieces import HEADINGS, PromptPieces

PIECES = PromptPieces(
    order="policy_first",
    max_tokens=64,
    row_tokens=96,
    header=(1, 2, 3),
    policy_heading=(4, 5),
    content_heading=(6,),
    gap=(7,),
    empty=(8, 9),
    question=(10, 11, 12),
    headings={m: {r: (100 + 10 * i + ROLES.index(r),) for r in HEADINGS[m]} for i, m in enumerate(MODALITIES)},
    answers=("Yes", "No"),
    answer_ids=(20, 21),
    sections=("definition",),
)


def clauses(*lengths):
    return [Clause(f"label_{i}", "", "", tuple(1000 * (i + 1) + t for t in range(n))) for i, n in enumerate(lengths)]


def segments(*sizes, modality="text", soft=False):
    """Segments of one modality: ``sizes[n]`` are the numbers of tokens of item n's segments."""
    item = np.array([n for n, own in enumerate(sizes) for _ in own], np.int64)
    tokens = np.array([t for own in sizes for t in own], np.int64)
    role = np.arange(len(item)) % len(ROLES)
    if soft:
        return {modality: SegmentTokens(item, role, tokens, None)}
    ids = np.arange(len(item))[:, None] * 500 + np.arange(max([1, *tokens])) + 100_000
    return {modality: SegmentTokens(item, role, tokens, ids)}
