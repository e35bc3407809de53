"""What the report shows of an item in addition to its probability: its texts, and the segments that the decision rests on."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vigil_data.decode.text_spans import MarkedSpan


@dataclass(frozen=True, slots=True)
class SegmentEvidence:
    """A segment that a decision rests on.

    Attributes:
        modality: ``text``, ``image`` or ``audio``.
        location: position in the item, such as ``text 2, characters 40 to 120`` or ``transcript (text 3), 0:12.5 to 0:17.0``.
        weight: share of the decision, in [0, 1].
        excerpt: text of the segment; ``None`` for images and audio.
    """

    modality: str
    location: str
    weight: float
    excerpt: str | None


@dataclass(frozen=True, slots=True)
class ItemExample:
    """Content of an item.

    Attributes:
        texts: texts in the item's order.
        evidence: label to the segments that its probability rests on, by falling weight.
        spans: label to the characters of the texts that the model marks.
    """

    texts: tuple[str, ...]
    evidence: Mapping[str, tuple[SegmentEvidence, ...]]
    spans: Mapping[str, tuple[MarkedSpan, ...]] = field(default_factory=dict)
