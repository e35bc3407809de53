"""Perturbations of text: typing errors, emphasis, and evasion of filters; suites and training share them.

Each takes a text and a random generator and returns the perturbed text, or the text unchanged if nothing in it applies.
"""

import re
from collections.abc import Callable, Mapping
from random import Random

from vigil_data.augmentation.specs import IdentitySwap, TextAugmentation, TextPerturbation

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


def replace(text: str, words: Mapping[str, str], *, any_case: bool = False, keep_capital: bool = False) -> str:
    """Replace complete words simultaneously, so that two can be exchanged; longer ones first.

    Args:
        text: the text.
        words: word to its replacement.
        any_case: whether to ignore case.
        keep_capital: whether the replacement of a word that begins with a capital begins with one.
    """
    known = {(word.lower() if any_case else word): other for word, other in words.items()}
    pattern = "|".join(re.escape(word) for word in sorted(known, key=len, reverse=True))

    def other(found: re.Match[str]) -> str:
        word = found.group()
        # A regular expression ignores case for some letters that lower() keeps, such as U+017F.
        new = known.get(word.lower() if any_case else word, word)
        return new[:1].upper() + new[1:] if keep_capital and word[0].isupper() else new

    return re.sub(rf"(?<!\w)(?:{pattern})(?!\w)", other, text, flags=re.IGNORECASE if any_case else 0)


PERTURBATIONS: Mapping[TextPerturbation, Callable[[str, Random], str]] = {
    "typos": lambda text, rng: typos(text, rng, rng.randint(1, 3)),
    "leetspeak": lambda text, _: leetspeak(text),
    "spacing": lambda text, rng: spacing(text, rng.choice(("join", "spread", "zero_width"))),
    "casing": lambda text, rng: casing(text, rng.choice(("upper", "lower", "alternate"))),
    "stretching": stretching,
    "homoglyphs": lambda text, rng: homoglyphs(text, rng, rng.uniform(0.1, 1.0)),
    "emoji": lambda text, _: replace(text, EMOJI, any_case=True),
}
"""Name of each perturbation in a recipe to its function."""


def augment_texts(texts: tuple[str, ...], spec: TextAugmentation, rng: Random) -> tuple[str, ...]:
    """Return the texts of an item with other identity terms, the same throughout the item, and perturbed."""
    swap, perturb = spec.identity_swap, spec.perturb
    if swap is not None and rng.random() < swap.probability:
        words = swapped_terms(swap, rng)
        texts = tuple(replace(text, words, any_case=True, keep_capital=True) for text in texts)
    if perturb is not None:
        texts = tuple(
            PERTURBATIONS[rng.choice(perturb.kinds)](text, rng) if rng.random() < perturb.probability else text for text in texts
        )
    return texts


def swapped_terms(spec: IdentitySwap, rng: Random) -> dict[str, str]:
    """Return each identity term with a term of another group of its list: two groups never become one."""
    words: dict[str, str] = {}
    for groups in spec.terms.values():
        names = list(groups)
        rng.shuffle(names)
        for name, other in zip(names, [*names[1:], names[0]], strict=True):
            words |= {word: rng.choice(groups[other]) for word in groups[name]}
    return words
