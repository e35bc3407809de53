"""What the formats of other tools share: values of answers, the text of an item in one piece, and what is left out."""

from collections import Counter
from collections.abc import Callable, Mapping

from vigil_data.items import Item
from vigil_data.reviews.decisions import CANNOT_TELL

Link = Callable[[bytes], str]
"""Returns the reference to an encoded image or audio file."""

YES, NO = "yes", "no"
VALUES: Mapping[str, float | str] = {YES: 1, NO: 0, CANNOT_TELL: CANNOT_TELL}
"""Answers as reviewers choose them, to the values of decisions."""

NO_TEXT = "(no text)"


class Skipped(Counter[str]):
    """Number of entries that are no decisions, by the reason."""

    def lines(self) -> list[str]:
        """Return one line for each reason."""
        return [f"{count:,} {reason}" for reason, count in self.items()]


def whole_text(item: Item) -> str:
    """Return an item's texts in one piece, each under its role unless that is ``body``."""
    parts = []
    for place, text in enumerate(item.text):
        role = item.role("text", place)
        parts.append(text if role == "body" else f"[{role}]\n{text}")
    return "\n\n".join(parts) or NO_TEXT
