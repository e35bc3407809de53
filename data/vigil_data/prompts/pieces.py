"""Constant pieces of a guard's prompt as token ids, which a bundle stores and the torch-free runtime reads.

A prompt is, with the policy first::

    header  policy_heading clause  gap  content_heading segments  question
    header  content_heading segments  gap  policy_heading clause  question      (with the item first)

Each segment is its heading (``Title:``) and its tokens; an item without segments is :attr:`PromptPieces.empty`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from vigil_data.items import MODALITIES, ROLES
from vigil_data.json_fields import Count, Range

Order = Literal["policy_first", "item_first"]
ORDERS: tuple[Order, ...] = ("policy_first", "item_first")
Ids = tuple[Count, ...]
HEADINGS: Mapping[str, Mapping[str, str]] = {
    "text": {
        "body": "Text:",
        "title": "Title:",
        "context": "In reply to:",
        "transcript": "Transcript:",
        "ocr": "Text in the picture:",
        "cover": "Cover:",
    },
    "image": {role: "Cover picture:" if role == "cover" else "Picture:" for role in ROLES},
    "audio": dict.fromkeys(ROLES, "Sound:"),
}
"""Modality and role to the heading of a segment."""


@dataclass(frozen=True, slots=True)
class PromptPieces:
    """Constant pieces of a prompt.

    Attributes:
        order: what stands first; ``auto`` must be resolved before prompts are assembled.
        max_tokens: maximum length of a prompt.
        row_tokens: maximum length of a row of prompts that share their beginning.
        header: from the beginning of the sequence to the end of the instruction.
        policy_heading: before a clause.
        content_heading: before the segments of an item.
        gap: between policy and item; between two clauses.
        empty: in place of the segments of an item that has none.
        question: from the end of item or policy to the token before the answer.
        headings: modality and role to what stands before a segment.
        answers: the two answers as text.
        answer_ids: their token ids.
        sections: parts of a label's policy text that clauses have.
    """

    order: Literal["auto", "policy_first", "item_first"]
    max_tokens: Annotated[int, Range(1)]
    row_tokens: Annotated[int, Range(1)]
    header: Ids
    policy_heading: Ids
    content_heading: Ids
    gap: Ids
    empty: Ids
    question: Ids
    headings: Mapping[str, Mapping[str, Ids]]
    answers: tuple[str, ...]
    answer_ids: Ids
    sections: tuple[Literal["instruction", "definition", "violates", "allowed", "boundary"], ...]

    def __post_init__(self) -> None:
        lacking = [f"{m} {role}" for m in MODALITIES for role in ROLES if role not in self.headings.get(m, {})]
        if lacking or len(self.answers) != 2 or len(self.answer_ids) != 2:
            raise ValueError(f"prompt pieces lack {', '.join(lacking) or 'the two answers'}")

    @property
    def fixed_tokens(self) -> int:
        """Tokens of a prompt besides its clauses and segments."""
        return sum(map(len, (self.header, self.policy_heading, self.content_heading, self.gap, self.question)))
