"""What a text's content is: whether it has any, and which texts are equal. Standard library only."""

import unicodedata

NO_CONTENT = "no content: blank text, no image, no audio"
"""Reason in the quarantine table for an item without content."""

_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})


def is_blank(text: str) -> bool:
    """Whether a text has only white space, control characters and invisible ones, such as a zero-width space."""
    return all(unicodedata.category(character) in _INVISIBLE for character in text)


def normalised(text: str) -> str:
    """Return the text in NFKC, case-folded, with single spaces, to find equal texts."""
    return " ".join((text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold().split())
