"""What a check finds: errors and warnings, each kind and reason once, with its number and the first places."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vigil_data.errors import Problems

Severity = Literal["error", "warning"]

KINDS: Mapping[str, tuple[Severity, str]] = {
    "schema": ("error", "a row or column that is not as it must be"),
    "duplicate id": ("error", "an id that an earlier row has"),
    "target": ("error", "a target outside [0, 1]"),
    "outside": ("error", "a path that leads out of the media folder"),
    "file": ("error", "a media file that is missing, too large or not a regular file"),
    "undecodable": ("error", "a medium that cannot be decoded completely"),
    "bomb": ("error", "a medium with too many pixels, frames, seconds or bytes"),
    "timeout": ("error", "a medium that takes too long to decode"),
    "crash": ("error", "a medium that makes the decoder crash"),
    "no content": ("error", "an item without text, image or audio"),
    "blank text": ("warning", "a blank text of an item that has other content"),
    "suffix": ("warning", "a file whose content is of another format than its name says"),
    "label": ("warning", "a label that cannot be learned or tested as the dataset is"),
    "unknown tokens": ("warning", "a split in which the tokenizer does not know much of the text"),
}
"""Kinds of findings: how bad it is, and what it is. An import refuses errors; warnings are stored."""


@dataclass(slots=True)
class Finding:
    """One kind and reason.

    Attributes:
        kind: one of :data:`KINDS`.
        reason: what is wrong.
        count: how often.
        places: the first places: ids or lines.
    """

    kind: str
    reason: str
    count: int = 0
    places: list[str] = field(default_factory=list)

    @property
    def severity(self) -> Severity:
        """Whether it is an error or a warning."""
        return KINDS[self.kind][0]

    def to_json(self) -> dict[str, Any]:
        """Return the finding as a JSON value."""
        found = {"severity": self.severity, "kind": self.kind, "reason": self.reason, "count": self.count}
        return {**found, "places": self.places}


class Findings:
    """Findings in bounded memory: after :attr:`Problems.MOST_MESSAGES` different ones, further reasons of a kind are one."""

    MOST_PLACES = 5

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Finding] = {}

    def add(self, kind: str, reason: str, place: str = "", count: int = 1) -> None:
        """Add a finding."""
        if (kind, reason) not in self._found and len(self._found) >= Problems.MOST_MESSAGES:
            reason = f"other: {KINDS[kind][1]}"
        finding = self._found.setdefault((kind, reason), Finding(kind, reason))
        finding.count += count
        if place and len(finding.places) < self.MOST_PLACES:
            finding.places.append(place)

    def __iter__(self) -> Any:
        """Iterate over the findings: errors first, in the order of :data:`KINDS`, the most frequent first."""
        order = list(KINDS)
        return iter(sorted(self._found.values(), key=lambda of: (of.severity == "warning", order.index(of.kind), -of.count)))

    @property
    def errors(self) -> int:
        """Number of errors."""
        return sum(finding.count for finding in self._found.values() if finding.severity == "error")

    @property
    def warnings(self) -> int:
        """Number of warnings."""
        return sum(finding.count for finding in self._found.values() if finding.severity == "warning")
