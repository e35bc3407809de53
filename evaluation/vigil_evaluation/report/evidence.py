"""What the report shows of an item beside its numbers: its texts, and the parts of it on which a model's decision rests."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EvidenceShown:
    """A part of an item on which a decision rests.

    Attributes:
        modality: ``text``, ``image`` or ``audio``.
        where: the part in words, such as ``text 2, characters 40-120`` or ``sound 1, 0:10-0:12``.
        weight: the share of the decision that rests on it, in [0, 1].
        excerpt: the text of the part; ``None`` where there is none to show.
    """

    modality: str
    where: str
    weight: float
    excerpt: str | None


@dataclass(frozen=True, slots=True)
class Example:
    """An item as a reader sees it.

    Attributes:
        texts: in the item's order.
        evidence: label to the parts on which its probability rests, the weightiest first.
    """

    texts: tuple[str, ...]
    evidence: Mapping[str, tuple[EvidenceShown, ...]]
