"""Clauses: the policy text of one label, as a guard reads it.

Example:
    >>> print(clause_text("hate_speech", Label(definition="Attacks people for what they are.", violates=("slurs",))))
    Category: hate speech
    Definition: Attacks people for what they are.
    Violates:
    - slurs
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vigil_data.errors import UserError

if TYPE_CHECKING:
    from vigil_data.taxonomy import Label, Taxonomy

Section = Literal["instruction", "definition", "violates", "allowed", "boundary"]
SECTIONS: tuple[Section, ...] = ("instruction", "definition", "violates", "allowed", "boundary")
"""Parts of a label's policy text, in the order in which they are read."""

Encode = Callable[[str], Sequence[int]]
"""Text to its token ids, without special tokens; see :meth:`vigil_data.prompts.tokenizer.PromptTokenizer.text`."""


@dataclass(frozen=True, slots=True)
class Clause:
    """The policy text of one label.

    Attributes:
        label: name of the label.
        text: what the model reads.
        digest: SHA-256 of the text, to which evaluation and calibration belong.
        ids: token ids of the text.
    """

    label: str
    text: str
    digest: str
    ids: tuple[int, ...]


def clause_text(title: str, label: "Label", sections: Sequence[Section] = SECTIONS) -> str:
    """Return the policy text of a label.

    Args:
        title: heading of the clause: the label's name, or a code that stands for it.
        label: the label. Without a ``definition``, its ``description`` is its definition.
        sections: parts to include; those that the label lacks are left out.

    Returns:
        The text; only its heading if the label has none of the parts.
    """
    lines = [f"Category: {title.replace('_', ' ')}"]
    for section in SECTIONS:
        if section in sections:
            lines += _section(section, label)
    return "\n".join(lines)


def clauses_of(taxonomy: "Taxonomy", encode: Encode, sections: Sequence[Section] = SECTIONS) -> tuple[Clause, ...]:
    """Return the clause of each label, in the taxonomy's order.

    Args:
        taxonomy: the labels.
        encode: tokenization of plain text.
        sections: parts of the policy text to include.

    Raises:
        UserError: if a label has none of the parts; one line names all such labels.
    """
    labels = {name: label for head in taxonomy.heads.values() for name, label in head.labels.items()}
    return clauses_of_texts({name: _policy_text(name, label, sections) for name, label in labels.items()}, encode, sections)


def clauses_of_texts(texts: Mapping[str, str | None], encode: Encode, sections: Iterable[str]) -> tuple[Clause, ...]:
    """Return the clauses of labels by their policy texts, ``None`` for a label without one.

    Raises:
        UserError: if a label has no text; one line names all such labels.
    """
    if missing := [name for name, text in texts.items() if text is None]:
        raise UserError(
            f"no policy text for {', '.join(missing)}: a guard reads {', '.join(sections)} of each label; "
            "write at least a definition"
        )
    return tuple(make_clause(name, text, encode) for name, text in texts.items() if text is not None)


def make_clause(label: str, text: str, encode: Encode) -> Clause:
    """Return a clause with the given text."""
    return Clause(label, text, digest_of(text), tuple(encode(text)))


def digest_of(text: str) -> str:
    """Return the SHA-256 of a policy text, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def _policy_text(name: str, label: "Label", sections: Sequence[Section]) -> str | None:
    return clause_text(name, label, sections) if any(_section(section, label) for section in sections) else None


def _section(section: Section, label: "Label") -> list[str]:
    match section:
        case "instruction":
            return [f"Question: {label.instruction}"] if label.instruction else []
        case "definition":
            definition = label.definition or label.description
            return [f"Definition: {definition}"] if definition else []
        case "violates":
            return ["Violates:", *(f"- {line}" for line in label.violates)] if label.violates else []
        case "allowed":
            return ["Does not violate:", *(f"- {line}" for line in label.allowed)] if label.allowed else []
        case "boundary":
            examples = [
                f"- {example.example} ({'violates' if example.violates else 'does not violate'}: {example.reason})"
                for example in label.boundary
            ]
            return ["Examples:", *examples] if examples else []
