"""What a guard reads, as text: the parts of a prompt with their tokens, and the tokens of each label's policy.

Example:
    >>> for part in describe(pieces, clauses, 0, segments, tokenizer).parts:
    ...     print(part.name, part.tokens)
    beginning 38
    policy of hate 112
    content 27
    question 22
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.items import MODALITIES, Modality
from vigil_data.prompts.assemble import Cut, Question, SegmentTokens, assemble, paths
from vigil_data.prompts.clauses import Clause
from vigil_data.prompts.pieces import PromptPieces
from vigil_data.prompts.tokenizer import PromptTokenizer

MANY_POLICY_TOKENS = 600
"""Tokens of a label's policy above which a warning is printed: each prompt costs them, and small models lose the thread."""


class Part(NamedTuple):
    """A part of a prompt: its name, its text with special tokens, and its number of tokens."""

    name: str
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class DescribedPrompt:
    """A prompt's parts in the order in which the model reads them, and the segments that were shortened."""

    parts: tuple[Part, ...]
    cut: tuple[Cut, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens of the prompt."""
        return sum(part.tokens for part in self.parts)


def describe(
    pieces: PromptPieces,
    clauses: Sequence[Clause],
    label: int,
    segments: Mapping[Modality, SegmentTokens],
    tokenizer: PromptTokenizer,
) -> DescribedPrompt:
    """Return the prompt of one item and one label, with soft tokens as words such as ``⟨image⟩``.

    Args:
        pieces: the constant pieces; their order must be resolved.
        clauses: the clauses of all labels; the item is cut for the longest.
        label: the label that is asked about.
        segments: modality to the tokens of the item's segments.
        tokenizer: tokenizer of the pieces.

    Raises:
        UserError: if a policy leaves no room for content.
    """
    rows = assemble(pieces, clauses, [Question(0, (number,), number) for number in range(len(clauses))], segments)
    columns, row = list(paths(rows))[label], rows.answer_row[label]
    ids, soft = rows.input_ids[row, columns], rows.soft[row, columns]
    names = [m for m in MODALITIES if m in segments and segments[m].ids is None for _ in range(int(segments[m].tokens.sum()))]
    around = len(pieces.header), len(pieces.question)
    policy = len(pieces.policy_heading) + len(clauses[label].ids)
    content = len(ids) - sum(around) - policy - len(pieces.gap)
    of_policy, of_content = (f"policy of {clauses[label].label}", policy), ("content", content)
    first, second = (of_policy, of_content) if pieces.order == "policy_first" else (of_content, of_policy)
    parts, start = [], 0
    for name, length in (("beginning", around[0]), first, ("gap", len(pieces.gap)), second, ("question", around[1])):
        stop = start + length
        parts.append(Part(name, _text(ids[start:stop], soft[start:stop], names, tokenizer), length))
        start = stop
    return DescribedPrompt(tuple(parts), rows.cut)


def policy_lines(pieces: PromptPieces, clauses: Sequence[Clause]) -> list[str]:
    """Return lines about the tokens of a recipe's prompts, the last of them warnings that begin with ``warning:``.

    Args:
        pieces: the constant pieces.
        clauses: the clause of each label.
    """
    tokens = {clause.label: len(clause.ids) for clause in clauses}
    room = pieces.max_tokens - pieces.fixed_tokens - max(tokens.values())
    lines = [
        "tokens of the policies: " + ", ".join(f"{label} {count}" for label, count in tokens.items()),
        f"tokens besides policy and content: {pieces.fixed_tokens}; left for content next to the longest policy: {room}",
    ]
    if long := [f"{label} ({count})" for label, count in tokens.items() if count > MANY_POLICY_TOKENS]:
        lines.append(
            f"warning: policies of more than {MANY_POLICY_TOKENS} tokens: {', '.join(long)}; each prompt costs them, shorten them"
        )
    return lines


def _text(ids: NDArray[np.int64], soft: NDArray[np.int64], names: Sequence[str], tokenizer: PromptTokenizer) -> str:
    """Decode token ids between soft tokens, and name those."""
    text, start = "", 0
    for place in [*np.flatnonzero(soft).tolist(), len(ids)]:
        text += tokenizer.decode(ids[start:place].tolist())
        text += f"⟨{names[soft[place] - 1]}⟩" if place < len(ids) else ""
        start = place + 1
    return text
