"""Perturbations of text: typing errors, emphasis, and evasion of filters.

Each takes a text and a random generator and returns the perturbed text, or the text unchanged if nothing in it applies.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from vigil_data.suites import specs
from vigil_data.suites.templates import Filled, Fragment, Word, Words, lexicon_of, plain

LEET: Mapping[str, str] = {"a": "4", "e": "3", "i": "1", "o": "0", "s": "5", "t": "7"}
"""Letter to a digit of similar shape."""

HOMOGLYPHS: Mapping[str, str] = {
    "a": "\u0430",
    "c": "\u0441",
    "e": "\u0435",
    "i": "\u0456",
    "j": "\u0458",
    "o": "\u043e",
    "p": "\u0440",
    "s": "\u0455",
    "x": "\u0445",
    "y": "\u0443",
    "A": "\u0410",
    "B": "\u0412",
    "C": "\u0421",
    "E": "\u0415",
    "H": "\u041d",
    "I": "\u0406",
    "K": "\u041a",
    "M": "\u041c",
    "O": "\u041e",
    "P": "\u0420",
    "T": "\u0422",
    "X": "\u0425",
}
"""Latin letter to the Cyrillic letter of the same shape."""

EMOJI: Mapping[str, str] = {
    "cigarette": "\U0001f6ac",
    "cigarettes": "\U0001f6ac",
    "cards": "\U0001f0cf",
    "dice": "\U0001f3b2",
    "slots": "\U0001f3b0",
    "money": "\U0001f4b0",
    "cash": "\U0001f4b5",
    "bank": "\U0001f3e6",
    "card": "\U0001f4b3",
    "phone": "\U0001f4f1",
    "prize": "\U0001f3c6",
    "gift": "\U0001f381",
    "football": "\u26bd",
    "house": "\U0001f3e0",
    "car": "\U0001f697",
    "train": "\U0001f686",
    "dog": "\U0001f415",
    "cat": "\U0001f408",
    "fire": "\U0001f525",
    "sun": "\u2600\ufe0f",
}
"""Default words of the perturbation ``emoji``."""

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_LONG_WORD = re.compile(r"[^\W\d_]{4,}")
_VOWEL = re.compile(r"[aeiouAEIOU]")


def typos(text: str, rng: Random, words: int = 1) -> str:
    """Make one typing error in each of ``words`` random words of four or more letters; first letters are unchanged."""
    found = list(_LONG_WORD.finditer(text))
    chosen = sorted(rng.sample(found, min(words, len(found))), key=re.Match.start, reverse=True)
    for word in chosen:
        text = text[: word.start()] + _slip(word.group(), rng) + text[word.end() :]
    return text


def _slip(word: str, rng: Random) -> str:
    """Return the word with one typing error, always different from ``word``."""
    index = rng.randrange(1, len(word))
    letter = word[index]
    candidates = {
        "swap": word[: index - 1] + letter + word[index - 1] + word[index + 1 :] if index > 1 else word,
        "drop": word[:index] + word[index + 1 :],
        "double": word[:index] + letter + word[index:],
        "adjacent": word[:index] + _adjacent_key(letter, rng) + word[index + 1 :],
    }
    return candidates[rng.choice([kind for kind, changed in candidates.items() if changed != word])]


def _adjacent_key(letter: str, rng: Random) -> str:
    """Return a letter on an adjacent key, or the letter itself if it is on no key."""
    row = next((row for row in _ROWS if letter.lower() in row), None)
    if row is None:
        return letter
    index = row.index(letter.lower())
    other = rng.choice([row[i] for i in (index - 1, index + 1) if 0 <= i < len(row)])
    return other.upper() if letter.isupper() else other


def leetspeak(text: str) -> str:
    """Replace letters by digits of similar shape."""
    return "".join(LEET.get(letter.lower(), letter) for letter in text)


def spacing(text: str, how: str) -> str:
    """Join the words (``join``), or separate letters by spaces (``spread``) or by the invisible U+200B."""
    if how == "join":
        return "".join(text.split())
    between, gap = (" ", "  ") if how == "spread" else ("\u200b", " ")
    return gap.join(between.join(word) for word in text.split())


def casing(text: str, how: str) -> str:
    """Change the case: ``upper``, ``lower``, or every second letter upper."""
    if how == "upper":
        return text.upper()
    if how == "lower":
        return text.lower()
    count, made = 0, []
    for letter in text:
        made.append(letter.upper() if count % 2 else letter.lower())
        count += letter.isalpha()
    return "".join(made)


def stretching(text: str, rng: Random) -> str:
    """Repeat one vowel four times."""
    vowels = [vowel.start() for vowel in _VOWEL.finditer(text)]
    if not vowels:
        return text
    index = rng.choice(vowels)
    return text[:index] + text[index] * 3 + text[index:]


def homoglyphs(text: str, rng: Random, share: float = 0.5) -> str:
    """Replace a share of the letters that have a homoglyph, at least one, by the homoglyph."""
    indices = [index for index, letter in enumerate(text) if letter in HOMOGLYPHS]
    chosen = set(rng.sample(indices, min(len(indices), max(1, round(share * len(indices))))))
    return "".join(HOMOGLYPHS[letter] if index in chosen else letter for index, letter in enumerate(text))


def replace(text: str, words: Mapping[str, str], *, any_case: bool = False) -> str:
    """Replace complete words simultaneously, so that two can be exchanged; longer ones first.

    Args:
        text: the text.
        words: word to its replacement.
        any_case: whether to ignore case.
    """
    known = {(word.lower() if any_case else word): other for word, other in words.items()}
    pattern = "|".join(re.escape(word) for word in sorted(known, key=len, reverse=True))
    return re.sub(
        rf"(?<!\w)(?:{pattern})(?!\w)",
        lambda found: known[found.group().lower() if any_case else found.group()],
        text,
        flags=re.IGNORECASE if any_case else 0,
    )


ALTERATIONS: Mapping[type[specs.Perturbation], Callable[[Any, str, Random], str]] = {
    specs.Typos: lambda asked, text, rng: typos(text, rng, asked.words),
    specs.Leetspeak: lambda _, text, __: leetspeak(text),
    specs.Spacing: lambda asked, text, _: spacing(text, asked.how),
    specs.Casing: lambda asked, text, _: casing(text, asked.how),
    specs.Stretching: lambda _, text, rng: stretching(text, rng),
    specs.Homoglyphs: lambda asked, text, rng: homoglyphs(text, rng, asked.share),
    specs.Emoji: lambda asked, text, _: replace(text, {**EMOJI, **asked.words}, any_case=True),
    specs.Replace: lambda asked, text, _: replace(text, asked.words),
}
"""Spec of each text perturbation to its function."""


def altered(texts: Sequence[Filled], asked: specs.AnyPerturbation, rng: Random) -> list[Filled]:
    """Return the perturbed texts of an item.

    Args:
        texts: filled templates.
        asked: one of :data:`ALTERATIONS`; its ``within`` limits it to the words of some placeholders (default: the complete
            text).
        rng: random generator.
    """
    alter = ALTERATIONS[type(asked)]
    if not asked.within:
        return [(Fragment(alter(asked, plain(filled), rng)),) for filled in texts]
    return [
        tuple(f._replace(text=alter(asked, f.text, rng)) if f.placeholder in asked.within else f for f in filled)
        for filled in texts
    ]


def swapped(chosen: Mapping[str, Word], lexicon: str, words: Words, rng: Random) -> dict[str, Word]:
    """Return the filling with another word in each placeholder of a lexicon, of another group if the lexicon has groups.

    A placeholder without an alternative keeps its word.
    """
    made = dict(chosen)
    for name, word in chosen.items():
        if lexicon_of(name, words) != lexicon:
            continue
        taken = {other.text for other in made.values()}
        others = [
            other
            for other in words[lexicon]
            if other.text not in taken and (word.identity is None or other.identity != word.identity)
        ]
        if others:
            made[name] = rng.choice(others)
    return made
