"""Search of files for the bytes of many patterns at once, in one pass.

Example:
    >>> search_files([Path("report.html")], [Pattern(b"post-17", word=True)])
    {Path('report.html'): {Pattern(literal=b'post-17', word=True)}}
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 16 * 2**20
MIN_BYTES = 6
"""Patterns must be that long: shorter ones occur in any binary file by chance."""

_WORD = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


class Pattern(NamedTuple):
    """Bytes to find.

    Attributes:
        literal: the bytes, at least :data:`MIN_BYTES`.
        word: whether no letter, digit, ``_`` or ``-`` may precede or follow it: ``post-1`` is not in ``post-17``.
    """

    literal: bytes
    word: bool = False


def search_files(
    files: Iterable[Path], patterns: Iterable[Pattern], progress: Callable[[int], None] | None = None
) -> dict[Path, set[Pattern]]:
    """Return which of the patterns each file contains; files that contain none are left out.

    Args:
        files: regular files; those that vanish meanwhile are skipped.
        patterns: what to find.
        progress: called with the number of bytes that were searched so far.
    """
    searcher = Searcher(patterns)
    found = {}
    done = 0
    for file in files:
        hits: set[Pattern] = set()
        for chunk, is_first, is_last in _chunks(file, 2 * searcher.longest + 2):
            hits |= searcher.find(chunk, is_first=is_first, is_last=is_last)
            done += len(chunk)
            if progress is not None:
                progress(done)
        if hits:
            found[file] = hits
    return found


def _chunks(file: Path, overlap: int) -> Iterator[tuple[bytes, bool, bool]]:
    """Yield overlapping parts of a file, and whether each is the first and the last."""
    try:
        with file.open("rb") as opened:
            chunk, is_first = opened.read(CHUNK_BYTES), True
            while read := opened.read(CHUNK_BYTES):
                yield chunk, is_first, False
                is_first &= len(chunk) <= overlap
                chunk = chunk[-overlap:] + read
            yield chunk, is_first, True
    except FileNotFoundError:
        return


class Searcher:
    """Finds patterns by their first bytes: a table of the first two, then a sorted array of the first six.

    Args:
        patterns: what to find.

    Raises:
        ValueError: if one is shorter than :data:`MIN_BYTES`.
    """

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        self._by_length: dict[int, dict[bytes, list[Pattern]]] = {}
        for pattern in dict.fromkeys(patterns):
            if len(pattern.literal) < MIN_BYTES:
                raise ValueError(f"a pattern of {len(pattern.literal)} bytes is too short to search for")
            self._by_length.setdefault(len(pattern.literal), {}).setdefault(pattern.literal, []).append(pattern)
        literals = [literal for of in self._by_length.values() for literal in of]
        self.longest = max(map(len, literals), default=0)
        self._first2 = np.zeros(2**16, np.bool_)
        self._first2[[int.from_bytes(literal[:2], "little") for literal in literals]] = True
        self._first6 = np.unique(np.array([int.from_bytes(literal[:6], "little") for literal in literals], np.uint64))

    def find(self, chunk: bytes, *, is_first: bool = True, is_last: bool = True) -> set[Pattern]:
        """Return the patterns in some bytes, or in one of the overlapping parts of a file.

        A word at a cut is left to the part in which its neighbours are.
        """
        found: set[Pattern] = set()
        for start in self._candidates(np.frombuffer(chunk, np.uint8)):
            for length, patterns in self._by_length.items():
                end = start + length
                for pattern in patterns.get(chunk[start:end], ()):
                    before = is_first if start == 0 else chunk[start - 1] not in _WORD
                    after = is_last if end == len(chunk) else chunk[end] not in _WORD
                    if not pattern.word or (before and after):
                        found.add(pattern)
        return found

    def _candidates(self, byte_N: NDArray[np.uint8]) -> Sequence[int]:
        """Return the positions at which the first six bytes of some pattern are."""
        if len(byte_N) < MIN_BYTES or not len(self._first6):
            return ()
        positions = []
        for offset in (0, 1):
            pairs = byte_N[offset : offset + (len(byte_N) - offset) // 2 * 2].view("<u2")
            positions.append(np.flatnonzero(self._first2[pairs]) * 2 + offset)
        start_K = np.sort(np.concatenate(positions))
        start_K = start_K[start_K <= len(byte_N) - MIN_BYTES]
        key_K = np.zeros(len(start_K), np.uint64)
        for place in range(MIN_BYTES):
            key_K |= byte_N[start_K + place].astype(np.uint64) << np.uint64(8 * place)
        candidates: list[int] = start_K[np.isin(key_K, self._first6)].tolist()
        return candidates
