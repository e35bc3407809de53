"""Near-duplicate texts: MinHash over the character shingles of a text's letters.

A text is reduced to its letters and digits (:func:`skeleton`), so that case, punctuation, spacing, emoji, accents, look-alike
letters, invisible characters, repeated letters and digits in place of letters change nothing. Two texts are near-duplicates if
the Jaccard index of their shingles reaches a threshold. MinHash (Broder 1997) with banding (Leskovec et al., Mining of Massive
Datasets, section 3.4) finds the pairs, and the exact index decides.

Example:
    >>> skeleton("H3llo,  w\u043erld!!")
    'heioworid'
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from vigil_data.dataset.text_content import normalised
from vigil_data.normalization.tables import replacement_table
from vigil_data.quality.near.candidates import Pairs, Wanted, bucket_pairs

SIGNATURE = 128
"""Slots of a signature, one byte each."""

_SHINGLE = 4
_FEWEST_SHINGLES = 8
"""Shingles below which two texts are near-duplicates only if all their letters are equal: one word would decide."""

_SHORT = _SHINGLE + _FEWEST_SHINGLES - 1
"""Characters below which a text is short: emoji carry as much of it as letters, so they count."""

_ROWS = 4
"""Slots of a band. Texts are compared if they agree in one of the 32 bands: 95 % of the pairs with a Jaccard index of 0.55 do,
and 99.8 % of those with 0.65."""

_NEIGHBOURS = 32
"""Texts that each text of a bucket is compared with: those of the most similar signatures. It bounds the work where thousands of
texts are made from one template."""

_MARGIN = 0.15
"""Pairs whose estimate is below the threshold by more than this (3.4 standard errors) are not compared exactly."""

_CHUNK_SHINGLES, _FEW_SHINGLES = 200_000, 2_000

_LEET = re.compile(r"[@$](?=[^\W\d_])|(?<=[^\W_])[@$!|]+(?=[^\W_])|(?<=[^\W\d_])\$")
_DIGITS = re.compile(r"\w*\d\w*")
_LETTER_FOR = str.maketrans("0134578@$!|l", "oieastbasiii")
_RUNS = re.compile(r"([^\W\d_])\1+")


class _Characters(dict[int, str]):
    """Character to the letters that it counts as: none for what is invisible, a space for what separates words."""

    def __init__(self) -> None:
        super().__init__()
        self._table = replacement_table(nfkc=False, emoji_names=False, fold_homoglyphs=True, remove_invisible=True)

    def __missing__(self, code: int) -> str:
        character = chr(code)
        folded = self._table.get(character, character).casefold()
        if 0x300 <= code < 0x370:
            folded = ""  # accents
        elif folded and character not in "@$!|" and unicodedata.category(character)[0] not in "LNM":
            folded = " "
        self[code] = folded
        return folded


_characters = _Characters()


def skeleton(text: str) -> str:
    """Return a text's letters and digits, as texts are compared; empty if it has none.

    Compatibility characters, accents and case are folded, letters of other scripts that look Latin become Latin, digits and signs
    within words become letters (and l becomes i, since 1 stands for both), and a repeated letter counts once.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text)
    text = _LEET.sub(lambda found: found[0].translate(_LETTER_FOR), text.translate(_characters))
    text = _DIGITS.sub(_word, text)
    letters = "".join(text.translate(_SIGNS).split()).replace("l", "i")
    return _RUNS.sub(r"\1", letters)


_SIGNS = str.maketrans("@$!|_", "     ")


def _word(found: re.Match[str]) -> str:
    """Return the letters of a word with digits; a number stays one."""
    word = found[0]
    return word if word.isdecimal() else word.translate(_LETTER_FOR)


@dataclass(frozen=True, slots=True, eq=False)
class TextPrints:
    """Fingerprints of texts.

    Attributes:
        code_S: digest of all letters; 0 for a text without content, which is like no other.
        signature_SB: MinHash of the shingles, uint8 ``[S, 128]``.
        start_S: index of each text's first shingle, int64 ``[S + 1]``.
        shingles: hashes of 31 bits of all texts' shingles, ascending within a text.
    """

    code_S: NDArray[np.uint64]
    signature_SB: NDArray[np.uint8]
    start_S: NDArray[np.int64]
    shingles: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.code_S)

    @classmethod
    def of(cls, texts: Sequence[str]) -> "TextPrints":
        """Return the fingerprints of texts."""
        parts = []
        chunk: list[str] = []
        size = 0
        for text in texts:
            chunk.append(text)
            size += len(text)
            if size >= _CHUNK_SHINGLES:
                parts.append(_prints(chunk))
                chunk, size = [], 0
        return cls.concat([*parts, _prints(chunk)])

    @classmethod
    def concat(cls, parts: Sequence["TextPrints"]) -> "TextPrints":
        """Return the fingerprints of several sequences of texts, one after the other."""
        counts = np.concatenate([np.diff(part.start_S) for part in parts])
        return cls(
            np.concatenate([part.code_S for part in parts]),
            np.concatenate([part.signature_SB for part in parts]),
            np.concatenate([[0], np.cumsum(counts)]),
            np.concatenate([part.shingles for part in parts]),
        )

    def take(self, index: NDArray[np.int64]) -> "TextPrints":
        """Return some of them, in the given order."""
        counts = np.diff(self.start_S)[index]
        start = np.concatenate([[0], np.cumsum(counts)])
        places = np.repeat(self.start_S[index] - start[:-1], counts) + np.arange(start[-1])
        return TextPrints(self.code_S[index], self.signature_SB[index], start, self.shingles[places])

    def pairs(self, threshold: float, wanted: Wanted) -> Iterator[Pairs]:
        """Yield pairs of texts with a Jaccard index of at least ``threshold``, most of them several times."""
        bands = np.ascontiguousarray(self.signature_SB).view(f"u{_ROWS}")
        rank = np.lexsort((self.code_S, *self.signature_SB.T[:16]))
        place = np.empty_like(rank)
        place[rank] = np.arange(len(rank))
        for band in range(bands.shape[1]):
            for left, right in bucket_pairs(bands[:, band], place, _NEIGHBOURS, wanted):
                likely = self.estimate(left, right) >= threshold - _MARGIN
                one, other = left[likely], right[likely]
                index = self.jaccard(one, other)
                near = index >= threshold
                yield one[near], other[near], index[near]

    def estimate(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return an estimate of the Jaccard index of each pair, with a standard error of at most 0.045."""
        return estimated_jaccard(self.signature_SB[left], self.signature_SB[right])

    def jaccard(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the Jaccard index of the shingles of each pair of texts; of short texts, whether all letters are equal."""
        from scipy.sparse import csr_array

        sets = csr_array((np.ones(len(self.shingles), np.int32), self.shingles, self.start_S), shape=(len(self), 2**31 - 1))
        common = np.asarray(sets[left].multiply(sets[right]).sum(axis=1)).ravel()
        counts = np.diff(self.start_S)
        index: NDArray[np.float64] = common / np.maximum(counts[left] + counts[right] - common, 1)
        return index


def estimated_jaccard(left_SB: NDArray[np.uint8], right_SB: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return estimates of the Jaccard index from signatures; bytes are equal by chance in 1 of 256 slots."""
    equal: NDArray[np.float64] = (left_SB == right_SB).mean(axis=-1)
    return (equal - 1 / 256) / (1 - 1 / 256)


def _prints(texts: Sequence[str]) -> TextPrints:
    letters = [_compared(text) for text in texts]
    code_S = np.array([text_code(text) for text in letters], np.uint64)
    short_S = np.array([len(text) < _SHORT for text in letters], np.bool_)
    keys = _shingle_keys(["" if short else text for text, short in zip(letters, short_S.tolist(), strict=True)])
    whole = np.flatnonzero(short_S & (code_S > 0))
    keys = np.unique(np.concatenate([keys, whole.astype(np.uint64) << 32 | code_S[whole] >> np.uint64(33)]))
    start_S = np.searchsorted(keys, np.arange(len(texts) + 1, dtype=np.uint64) << np.uint64(32))
    shingles = (keys & np.uint64(0x7FFF_FFFF)).astype(np.int32)
    return TextPrints(code_S, _signatures(shingles, start_S), start_S.astype(np.int64), shingles)


def _compared(text: str) -> str:
    """Return what of a text is compared: its letters, with its emoji and symbols if there are few letters."""
    letters = skeleton(text)
    if len(letters) >= _SHORT:
        return letters
    return letters + "".join(c for c in text if unicodedata.category(c) == "So") or normalised(text)


def text_code(letters: str) -> int:
    """Return the digest of a text's letters; 0 if there are none."""
    if not letters:
        return 0
    return int.from_bytes(blake2b(letters.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") or 1


def _shingle_keys(letters: Sequence[str]) -> NDArray[np.uint64]:
    """Return number of the text and hash of the shingle, in the upper and lower 32 bits, of every shingle."""
    codes = np.frombuffer("".join(letters).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    lengths = np.array([len(text) for text in letters], np.int64)
    text = np.repeat(np.arange(len(letters)), lengths)
    if len(codes) < _SHINGLE:
        return np.empty(0, np.uint64)
    count = len(codes) - _SHINGLE + 1
    mixed = np.zeros(count, np.uint64)
    for place in range(_SHINGLE):
        mixed = _mix(mixed * np.uint64(0x100000001B3) + codes[place : place + count])
    within = text[:count] == text[_SHINGLE - 1 :]
    keys: NDArray[np.uint64] = text[:count][within].astype(np.uint64) << np.uint64(32) | mixed[within] >> np.uint64(33)
    return keys


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the output function of SplitMix64 (Steele et al. 2014)."""
    value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = value ^ value >> np.uint64(31)
    return mixed


_MULTIPLIERS, _ADDENDS = (
    _mix(np.arange(1 + offset, 1 + offset + SIGNATURE, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)
    for offset in (0, SIGNATURE)
)


def _signatures(shingles: NDArray[np.int32], start_S: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the lowest byte of the smallest of each of 128 hashes of a text's shingles, uint8 ``[S, 128]``."""
    signature_SB = np.zeros((len(start_S) - 1, SIGNATURE), np.uint8)
    full = np.flatnonzero(np.diff(start_S))
    if not len(full):
        return signature_SB
    mixed = _mix(shingles.astype(np.uint64) + np.uint64(1))
    if len(mixed) < _FEW_SHINGLES:  # all slots at once; for more they would not fit into the cache
        hashes = (mixed[:, None] * _MULTIPLIERS + _ADDENDS) >> np.uint64(32)
        signature_SB[full] = np.minimum.reduceat(hashes, start_S[full], axis=0) & np.uint64(0xFF)
        return signature_SB
    for slot in range(SIGNATURE):
        least = np.minimum.reduceat((mixed * _MULTIPLIERS[slot] + _ADDENDS[slot]) >> np.uint64(32), start_S[full])
        signature_SB[full, slot] = least & np.uint64(0xFF)
    return signature_SB
