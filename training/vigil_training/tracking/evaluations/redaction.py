"""Redaction of texts and images: what remains names no person and cannot be read.

Example:
    >>> mask_text("Ask Anna Berg at anna@example.com or on 0171 2345678, says @berg")
    'Ask [name] at [e-mail] or on [number], says [handle]'
"""

import io
import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageFilter

THUMBNAIL_PIXELS = 4
"""Longer side of what is kept of an image: a word that fills the image has less than one pixel a letter."""

LEVELS = 4
"""Levels of each colour that are kept, so that letters cannot be computed back from exact values."""

BLURRED_PIXELS = 96
"""Longer side of a blurred image."""

MIN_NAME_CHARACTERS = 3
"""Known names shorter than that are not searched in words of small letters: they are parts of speech in some language."""

_LINK = re.compile(
    r"(?:[a-z][a-z0-9+.-]{1,15}://|www\.)\S+|(?<![\w@])(?:[\w-]+\.)+[a-z]{2,24}/\S*|(?<![\w@.])(?:[\w-]+\.)+[a-z]{2,24}(?![\w@])",
    re.IGNORECASE,
)
_AT = r"(?:\s*[\[({<]\s*at\s*[\])}>]\s*|\s*@\s*)"
_DOT = r"(?:\s*[\[({<]\s*dot\s*[\])}>]\s*|\.)"
_EMAIL = re.compile(
    rf"[\w.+%'-]+{_AT}[\w-]+(?:{_DOT}[\w-]+)+|[\w.+%'-]+\s+at\s+[\w-]+(?:\s+dot\s+[\w-]+)+|[\w.+%-]+@[\w-]+", re.IGNORECASE
)
_HANDLE = re.compile(r"(?<!\w)@[\w.-]*\w|(?<!\w)/?u/[\w-]+|\w+#\d{4}\b", re.IGNORECASE)
_NUMBER = re.compile(r"\w*\+?\(?\d(?:[\s().,:/_-]{0,3}\d){4,}\w*")
_WORD = re.compile(r"[^\W\d_]\w*(?:['’-]\w+)*")  # noqa: RUF001
_MASKED = re.compile(r"\[(?:link|e-mail|handle|number|name)\]")
_REPEATED = re.compile(r"\[name\](?:[\s.]*\[name\])+")

_COMMON_WORDS = """
a about after again all also always am an and another any anybody anyone anything are aren't as ask at away back be because
been before being best better both but by came can can't come could couldn't day did didn't do does doesn't doing don't down
each else even ever every everybody everyone everything few find first for from get give go going good got great had has have
haven't he hello her here hey hi him his how however i i'd i'll i'm i've if in into is isn't it it's its just keep know last
let let's like look lot made make many may maybe me might more most much must my need never new next no nobody not nothing now
of off oh ok okay old on once one only or other our out over own people please put really right said same say says see seen
she should shouldn't since so some somebody someone something sorry still stop such sure take tell than thank thanks that
that's the their them then there there's these they they're thing think this those though time to today together tomorrow too
two under until up us use very wait want was wasn't watch way we we're well were what what's when where which while who whose
why will with without won't work would wouldn't yeah yes yesterday yet you you'll you're you've your yours
"""
_COMMON = frozenset(_COMMON_WORDS.split())
"""Words that are no name although a sentence begins with them."""


def mask_text(text: str, names: Sequence[str] = ()) -> str:
    """Replace names, e-mail addresses, handles, links, and numbers of five and more digits.

    Names are the given ones, and words with a capital letter other than the commonest of English, wherever else in the text they
    stand and however they are written there. So nouns of German, and words that are shouted, are masked too; words of scripts
    without capital letters (Arabic, Chinese, Devanagari) are all masked. A name that is nowhere written with a capital letter is
    masked only if it is given.

    Args:
        text: the text.
        names: names that are known, such as the author's.
    """
    plain = unicodedata.normalize("NFKC", text)
    # Invisible characters and marks that belong to no single letter may split a name.
    plain = "".join(char for char in plain if unicodedata.category(char) not in ("Cf", "Mn", "Mc", "Me"))
    for name in sorted({unicodedata.normalize("NFKC", name).strip() for name in names}, key=len, reverse=True):
        if len(name) >= MIN_NAME_CHARACTERS:
            plain = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "[name]", plain, flags=re.IGNORECASE)
    for kind, pattern in (("e-mail", _EMAIL), ("link", _LINK), ("handle", _HANDLE), ("number", _NUMBER)):
        plain = _outside_masks(plain, lambda part, kind=kind, pattern=pattern: pattern.sub(f"[{kind}]", part))  # type: ignore[misc]
    known = names_in(plain) | {
        part.casefold() for name in names for part in _WORD.findall(name) if len(part) >= MIN_NAME_CHARACTERS
    }

    def mask_word(match: re.Match[str]) -> str:
        return "[name]" if _is_name(match[0]) or _stem(match[0]) in known else match[0]

    return _REPEATED.sub("[name]", _outside_masks(plain, lambda part: _WORD.sub(mask_word, part)))


def names_in(text: str) -> set[str]:
    """Return the words that :func:`mask_text` takes for names, in small letters."""
    return {_stem(word) for part in _MASKED.split(text) for word in _WORD.findall(part) if _is_name(word)}


def blur_image(data: bytes) -> Image.Image:
    """Return a small image that shows no more than the distribution of colours.

    Args:
        data: an encoded image.

    Raises:
        OSError: if it cannot be decoded.
    """
    with Image.open(io.BytesIO(data)) as opened:
        rgb = opened.convert("RGB")
    longer = max(rgb.size)
    kept, shown = ([max(1, round(side * pixels / longer)) for side in rgb.size] for pixels in (THUMBNAIL_PIXELS, BLURRED_PIXELS))
    small = np.asarray(rgb.resize((kept[0], kept[1]), Image.Resampling.BOX), np.uint8)
    step = 256 // LEVELS
    coarse = Image.fromarray(small // step * step + step // 2)  # without the image's own metadata
    large = coarse.resize((shown[0], shown[1]), Image.Resampling.BICUBIC)
    return large.filter(ImageFilter.GaussianBlur(BLURRED_PIXELS / THUMBNAIL_PIXELS / 2))


def _stem(word: str) -> str:
    """Return a word in small letters, without the ending of the genitive."""
    return re.sub(r"['’]s?$", "", word.casefold())  # noqa: RUF001


def _is_name(word: str) -> bool:
    """Return whether a word may be a name: it has a capital letter and is not common, or its script has no capital letters."""
    if word.casefold().replace("’", "'") in _COMMON:  # noqa: RUF001
        return False
    return any(char.isupper() or unicodedata.category(char) in ("Lo", "Lt", "Lm") for char in word)


def _outside_masks(text: str, change: Callable[[str], str]) -> str:
    """Apply a change to what lies between masks."""
    return "".join(part if _MASKED.fullmatch(part) else change(part) for part in re.split(f"({_MASKED.pattern})", text))
