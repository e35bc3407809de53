"""Tables of replacements for :class:`vigil_data.normalization.normalizer.Normalizer`."""

import unicodedata
from collections.abc import Mapping
from functools import lru_cache

LOOK_ALIKES: Mapping[str, str] = {
    "A": "\u0391\u0410\u13aa\ua4ee",
    "B": "\u0392\u0412\u13f4\ua4d0\ua7b4",
    "C": "\u0421\u13df\u2ca4\ua4da",
    "D": "\u13a0\ua4d3",
    "E": "\u0395\u0415\u13ac\ua4f0",
    "F": "\u03dc\ua4dd\ua798",
    "G": "\u050c\u13c0\u13f3\ua4d6",
    "H": "\u0397\u041d\u13bb\u2c8e\ua4e7",
    "I": "\u0196\u0399\u0406\u04c0\u2c92\ua4f2",
    "J": "\u037f\u0408\u13ab\ua4d9\ua7b2",
    "K": "\u039a\u041a\u13e6\u2c94\ua4d7",
    "L": "\u13de\u2cd0\ua4e1",
    "M": "\u039c\u03fa\u041c\u13b7\u2c98\ua4df",
    "N": "\u039d\u2c9a\ua4e0",
    "O": "\u039f\u041e\u0555\u2c9e\ua4f3",
    "P": "\u03a1\u0420\u13e2\u2ca2\ua4d1",
    "R": "\u01a6\u13a1\u13d2\ua4e3",
    "S": "\u0405\u054f\u13d5\u13da\ua4e2",
    "T": "\u03a4\u0422\u13a2\u2ca6\ua4d4",
    "U": "\u054d\ua4f4",
    "V": "\u0474\u13d9\ua4e6",
    "W": "\u051c\u13b3\u13d4\ua4ea",
    "X": "\u03a7\u0425\u2cac\ua4eb\ua7b3",
    "Y": "\u03a5\u0423\u04ae\u13a9\u13bd\u2ca8\ua4ec",
    "Z": "\u0396\u13c3\ua4dc",
    "a": "\u0251\u03b1\u0430",
    "b": "\u0184\u042c\u13cf",
    "c": "\u0441\u1d04\u2ca5\uabaf",
    "d": "\u0501\u13e7\ua4d2",
    "e": "\u0435\u04bd\uab32",
    "f": "\u0584\u1e9d\ua799\uab35",
    "g": "\u018d\u0261\u0581\u1d83",
    "h": "\u04bb\u0570\u13c2",
    "i": "\u0131\u0269\u026a\u03b9\u0456\u04cf\u13a5\ua647\uab75",
    "j": "\u03f3\u0458",
    "l": "\u01c0",
    "n": "\u0578\u057c",
    "o": "\u03bf\u03c3\u043e\u0585\u1d0f\u1d11\u2c9f\uab3d",
    "p": "\u03c1\u0440\u2ca3",
    "q": "\u051b\u0563\u0566",
    "r": "\u0433\u1d26\u2c85\uab47\uab48\uab81",
    "s": "\u01bd\u0455\ua731\uabaa",
    "u": "\u028b\u03c5\u057d\u1d1c\ua79f\uab4e\uab52",
    "v": "\u03bd\u0475\u1d20\uaba9",
    "w": "\u026f\u0461\u051d\u0561\u1d21\uab83",
    "x": "\u0445",
    "y": "\u0263\u028f\u03b3\u0443\u04af\u1d8c\u1eff\uab5a",
    "z": "\u1d22\uab93",
}
"""Latin letter to the letters of other scripts, and rare Latin letters, that look like it.

From Unicode's confusables.txt (Unicode Technical Standard 39), https://www.unicode.org/Public/security/latest/confusables.txt, as
packaged in confusable-homoglyphs 3.3.1; copyright 1991-2024 Unicode, Inc., Unicode License v3
(https://www.unicode.org/license.txt). Kept are single Armenian, Cherokee, Coptic, Cyrillic, Greek, Latin and Lisu letters that
NFKC does not change; capital letters that look like both I and l are I.
"""

INVISIBLE = (
    (0xAD, 0xAD),
    (0x34F, 0x34F),
    (0x61C, 0x61C),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFFB),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE007F),
    (0xE0100, 0xE01EF),
)
"""Ranges of characters that show nothing: Unicode's Default_Ignorable_Code_Point, as far as assigned, and U+FFF9 to FFFB."""


@lru_cache(maxsize=8)
def replacement_table(*, nfkc: bool, emoji_names: bool, fold_homoglyphs: bool, remove_invisible: bool) -> Mapping[str, str]:
    """Return what a recipe's ``inputs.text.normalize`` replaces after NFKC.

    Args:
        nfkc: whether NFKC comes first; then the table omits what it changes.
        emoji_names: replace emoji by their English names between spaces, from the package emoji.
        fold_homoglyphs: replace letters by the Latin letters that they look like.
        remove_invisible: remove invisible characters that are no part of a named emoji.
    """
    table: dict[str, str] = {}
    if remove_invisible:
        table |= {chr(code): "" for first, last in INVISIBLE for code in range(first, last + 1)}
    if fold_homoglyphs:
        table |= {other: letter for letter, others in LOOK_ALIKES.items() for other in others}
    if emoji_names:
        from emoji import EMOJI_DATA  # lazy: a bundle holds the table, and its reader needs no package

        for symbol, data in EMOJI_DATA.items():
            table[symbol] = f" {data['en'].strip(':').replace('_', ' ')} "
    if nfkc:
        table = {key: new for key, new in table.items() if unicodedata.is_normalized("NFKC", key)}
    return table
