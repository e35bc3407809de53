r"""Normalization of text: NFKC, replacements from a table, separated letters and leetspeak, until nothing changes.

The table is data: a recipe generates it (:mod:`vigil_data.normalization.tables`) and a bundle holds it, so that a client in any
language needs no more than the NFKC of its standard library and two regular expressions.

Example:
    >>> normalizer = Normalizer("nfkc", {"\U0001f600": " grinning face "})
    >>> normalizer("\ufb01ne \U0001f600").text
    'fine  grinning face '
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

from vigil_data.errors import UserError

Edit = tuple[int, int, str]
"""Start and stop of a part of a text, and what replaces it."""

SEPARATED = re.compile(r"(?<![^ ])(?=(?:[0-9] )*[A-Za-z] (?:[0-9] )*[A-Za-z](?![^ ]))[A-Za-z0-9](?: [A-Za-z0-9]){2,}(?![^ ])")
"""Three or more ASCII letters or digits, at least two of them letters, alone between single spaces."""
LEETSPEAK = re.compile(r"(?<![A-Za-z0-9])(?=[0-9]*[A-Za-z])[A-Za-z]*[013457][A-Za-z013457]*(?![A-Za-z0-9])")
"""A word of ASCII letters and digits that look like letters, at least one of each."""
LEET_LETTERS: Mapping[str, str] = {"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t"}

_NOT_ASCII = re.compile(r"[\x00-\x7f]?[^\x00-\x7f]+")


class Normalized(NamedTuple):
    """A normalized text, and where it came from.

    Attributes:
        text: the normalized text.
        starts: index in the original text of the first character that each character came from; ``None``: nothing changed.
        stops: index after the last one.
    """

    text: str
    starts: list[int] | None = None
    stops: list[int] | None = None

    def original(self, start: int, stop: int) -> tuple[int, int]:
        """Return start and stop in the original text of what ``text[start:stop]`` came from."""
        if self.starts is None or self.stops is None:
            return start, stop
        return (self.starts[start], self.stops[stop - 1]) if stop > start else (0, 0)


class Normalizer:
    """Normalizer of text.

    One pass is NFKC (Unicode Standard Annex 15); then, from left to right, the longest entry of the table at each place; then
    separated letters; then leetspeak. Passes are repeated until nothing changes, so that a normalized text is unchanged by the
    normalizer. They end: the last two steps only remove spaces and digits.

    Args:
        unicode: ``nfkc`` or ``none``.
        replacements: text to its replacement.
        separated: ``join`` removes the spaces within what :data:`SEPARATED` matches.
        leetspeak: ``fold`` replaces the digits of what :data:`LEETSPEAK` matches by the letters that they look like.

    Raises:
        UserError: if passes might not end: a key is ASCII, or a replacement has a character outside ASCII that is in a key.
    """

    def __init__(
        self,
        unicode: Literal["nfkc", "none"],
        replacements: Mapping[str, str],
        separated: Literal["join", "keep"] = "keep",
        leetspeak: Literal["fold", "keep"] = "keep",
    ) -> None:
        self._nfkc = unicode == "nfkc"
        self._replacements = replacements
        self._words = [edits for wanted, edits in ((separated == "join", _joining), (leetspeak == "fold", _folding)) if wanted]
        special = set("".join(replacements))
        for key, new in replacements.items():
            if key.isascii() or any(not character.isascii() and character in special for character in new):
                raise UserError(
                    f"normalization of text: {key!r} cannot be replaced by {new!r}: the result could be replaced again"
                )
        lengths: dict[str, set[int]] = {}
        for key in replacements:
            lengths.setdefault(key[0], set()).add(len(key))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        self._first = re.compile("[" + "".join(map(re.escape, sorted(lengths))) + "]") if lengths else None

    def __call__(self, text: str) -> Normalized:
        """Normalize a text without lone surrogates. NFKC and the table leave ASCII unchanged."""
        normalized, before = Normalized(text), None
        while normalized.text != before:
            before = normalized.text
            if not normalized.text.isascii():
                if self._nfkc and not unicodedata.is_normalized("NFKC", normalized.text):
                    normalized = _apply(normalized, _nfkc_edits(normalized.text))
                normalized = _apply(normalized, self._table_edits(normalized.text))
            for edits in self._words:
                normalized = _apply(normalized, edits(normalized.text))
        return normalized

    def _table_edits(self, text: str) -> Iterator[Edit]:
        stop = 0
        for found in self._first.finditer(text) if self._first else ():
            start = found.start()
            if start < stop:
                continue
            for length in self._lengths[found.group()]:
                key = text[start : start + length]
                if key in self._replacements:
                    stop = start + len(key)
                    yield start, stop, self._replacements[key]
                    break


def _joining(text: str) -> Iterator[Edit]:
    """Yield the spaces between separated letters."""
    for found in SEPARATED.finditer(text):
        yield from ((place, place + 1, "") for place in range(found.start() + 1, found.end(), 2))


def _folding(text: str) -> Iterator[Edit]:
    """Yield the digits that stand for letters."""
    for found in LEETSPEAK.finditer(text):
        for place in range(*found.span()):
            if text[place] in LEET_LETTERS:
                yield place, place + 1, LEET_LETTERS[text[place]]


def _nfkc_edits(text: str) -> Iterator[Edit]:
    """Yield the parts of a text that NFKC changes, each as short as NFKC allows."""
    for run in _NOT_ASCII.finditer(text):
        start = run.start()
        for place in range(start + 1, run.end() + 1):
            if place == run.end() or not _joins(text[place]):
                part = text[start:place]
                if (changed := unicodedata.normalize("NFKC", part)) != part:
                    yield start, place, changed
                start = place


@lru_cache(maxsize=4096)
def _joins(character: str) -> bool:
    """Whether NFKC may combine or reorder the character with the one before: marks, and vowels and finals of Hangul."""
    first = unicodedata.normalize("NFKD", character)[0]
    return (
        unicodedata.category(first).startswith("M")
        or "\u1160" <= first <= "\u11ff"
        or first in "\U00016d63\U00016d67\U00016d68"  # Kirat Rai vowels, which are letters
    )


def _apply(normalized: Normalized, edits: Iterator[Edit]) -> Normalized:
    """Return the text with its edits, which are in order and do not overlap."""
    parts: list[str] = []
    starts: list[int] = []
    stops: list[int] = []
    end = 0
    old_starts = normalized.starts or range(len(normalized.text))
    old_stops = normalized.stops or range(1, len(normalized.text) + 1)
    for start, stop, new in edits:
        parts += normalized.text[end:start], new
        starts += [*old_starts[end:start], *[old_starts[start]] * len(new)]
        stops += [*old_stops[end:start], *[old_stops[stop - 1]] * len(new)]
        end = stop
    if not parts:
        return normalized
    parts.append(normalized.text[end:])
    return Normalized("".join(parts), [*starts, *old_starts[end:]], [*stops, *old_stops[end:]])
