"""Templates: text with placeholders in braces, and their fillings.

``{person}`` is replaced by a word of the lexicon ``person``, the same throughout one item, and ``{person2}`` by another word of
it. ``{{`` and ``}}`` are literal braces.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vigil_data.suites.specs import Suite

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Word(NamedTuple):
    """A word or phrase of a lexicon, and its group if the lexicon is one of ``identities``."""

    text: str
    identity: str | None = None


class Fragment(NamedTuple):
    """A piece of filled text with its placeholder, or ``None`` for literal text of the template."""

    text: str
    placeholder: str | None = None


Filled = tuple[Fragment, ...]
Words = Mapping[str, Sequence[Word]]


def words_of(suite: Suite) -> dict[str, tuple[Word, ...]]:
    """Return placeholder to its words, from lexicons and identities."""
    words = {name: tuple(Word(text) for text in entries) for name, entries in suite.lexicons.items()}
    for name, groups in suite.identities.items():
        words[name] = tuple(Word(text, group) for group, entries in groups.items() for text in entries)
    return words


def parse(template: str) -> list[Fragment]:
    """Split a template into literal fragments and placeholders, whose fragments are empty.

    Raises:
        ValueError: for an unmatched brace, or a placeholder that is not a valid lexicon name.
    """
    fragments, text, start = [], "", 0
    for token in _TOKEN.finditer(template):
        text += template[start : token.start()]
        start = token.end()
        found = token.group()
        if found in ("{{", "}}"):
            text += found[0]
        elif len(found) == 1:
            place = token.start() + 1
            raise ValueError(f"has an unmatched {found} at character {place}; write {found * 2} for a literal brace")
        elif not _NAME.fullmatch(token.group(1)):
            raise ValueError(
                f"has a placeholder {found} that is not a valid lexicon name; write {{{{ and }}}} for literal braces"
            )
        else:
            fragments += [Fragment(text), Fragment("", token.group(1))]
            text = ""
    return [fragment for fragment in (*fragments, Fragment(text + template[start:])) if fragment.text or fragment.placeholder]


def placeholders(templates: Sequence[str]) -> list[str]:
    """Return the unique placeholders of an item's templates, in order."""
    return list(dict.fromkeys(f.placeholder for template in templates for f in parse(template) if f.placeholder is not None))


def lexicon_of(placeholder: str, lexicons: Mapping[str, object]) -> str | None:
    """Return the lexicon of a placeholder: the one of its name, or of its name without a trailing number."""
    if placeholder in lexicons:
        return placeholder
    bare = placeholder.rstrip("0123456789")
    return bare if bare in lexicons else None


def fill(template: str, chosen: Mapping[str, Word]) -> Filled:
    """Return the template with its placeholders filled."""
    return tuple(Fragment(chosen[f.placeholder].text, f.placeholder) if f.placeholder is not None else f for f in parse(template))


def plain(filled: Filled) -> str:
    """Return the filled text."""
    return "".join(fragment.text for fragment in filled)


@dataclass(frozen=True, slots=True)
class Fillings:
    """All fillings of placeholders; placeholders of one lexicon get different words.

    Attributes:
        names: the placeholders.
        lexicons: lexicon of each placeholder.
        words: lexicon to its words.
    """

    names: tuple[str, ...]
    lexicons: tuple[str, ...]
    words: Words

    @classmethod
    def of(cls, templates: Sequence[str], words: Words) -> "Fillings":
        """Return the joint fillings of an item's templates.

        Raises:
            KeyError: if a placeholder has no lexicon.
        """
        names = tuple(placeholders(templates))
        return cls(names, tuple(_lexicon(name, words) for name in names), words)

    @property
    def sizes(self) -> list[int]:
        """Number of words left for each placeholder once the earlier ones are filled."""
        return [len(self.words[lexicon]) - self.lexicons[:index].count(lexicon) for index, lexicon in enumerate(self.lexicons)]

    def __len__(self) -> int:
        return math.prod(max(size, 0) for size in self.sizes)

    def __getitem__(self, number: int) -> dict[str, Word]:
        """Return a filling by number; the last placeholder varies fastest."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        digits = []
        for size in reversed(self.sizes):
            number, digit = divmod(number, size)
            digits.append(digit)
        left = {lexicon: list(self.words[lexicon]) for lexicon in self.lexicons}
        filled = zip(self.names, self.lexicons, reversed(digits), strict=True)
        return {name: left[lexicon].pop(digit) for name, lexicon, digit in filled}

    def __iter__(self) -> Iterator[dict[str, Word]]:
        return (self[number] for number in range(len(self)))


def _lexicon(placeholder: str, words: Words) -> str:
    lexicon = lexicon_of(placeholder, words)
    if lexicon is None:
        raise KeyError(placeholder)
    return lexicon
