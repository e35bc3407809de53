"""Near-duplicate audio: signs of spectral differences (Haitsma and Kalker 2002).

A file becomes a sequence of 32-bit words, one every 32 ms: each bit is the sign of the difference, in time and between two
neighbouring bands from 150 to 3,600 Hz, of the energy of a window of 256 ms. Gain changes no sign, and encoding few. Two files
are near-duplicates if the words of the shorter one, laid over the longer one, differ in at most a share of their bits.
Candidates, and how they lie over each other, come from words that are equal, or equal but for one uncertain bit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vigil_data.decode.audio import decode_audio
from vigil_data.errors import MediaError
from vigil_data.quality.near.candidates import BLOCK, Pairs, Wanted
from vigil_data.quality.near.images import file_code

MAX_SECONDS = 120.0
"""Seconds from the start of a file that are compared."""

_RATE, _HOP, _WINDOW, _BANDS = 8000, 256, 2048, 33
_LEAST_WORDS = 32
"""Words with sound, one second, below which a file equals only its copies: two takes of a spoken digit are as close
as two encodings of one."""

_LEAST_OVERLAP = 0.8
"""Share of the shorter file's words that must lie over the longer one."""

_SILENCE = 1e-7
"""Energy of a window relative to the file's loudest below which its word is silence; it has noise for signs."""

_PROBES = 3
"""Uncertain bits of each word that are also flipped to look for candidates."""


@dataclass(frozen=True, slots=True)
class _Settings:
    """Audio as it is compared."""

    rate: int = _RATE
    window: float = MAX_SECONDS
    hop: float | None = None
    max_windows: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class AudioPrints:
    """Fingerprints of audio files.

    Attributes:
        code_S: digest of the file.
        start_S: index of each file's first word, int64 ``[S + 1]``.
        words: words of all files, uint32; 0 for silence.
        flips: for each word its least certain bits as masks, uint32 ``[W, 3]``.
    """

    code_S: NDArray[np.uint64]
    start_S: NDArray[np.int64]
    words: NDArray[np.uint32]
    flips: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.code_S)

    @classmethod
    def of(cls, files: Sequence[bytes]) -> "AudioPrints":
        """Return the fingerprints of encoded audio files; one that cannot be decoded equals only its copies."""
        prints = [_words(file) for file in files]
        return cls(
            np.array([file_code(file) for file in files], np.uint64),
            np.concatenate([[0], np.cumsum([len(words) for words, _ in prints], dtype=np.int64)]).astype(np.int64),
            np.concatenate([np.empty(0, np.uint32), *(words for words, _ in prints)]),
            np.concatenate([np.empty((0, _PROBES), np.uint32), *(flips for _, flips in prints)]),
        )

    @classmethod
    def concat(cls, parts: Sequence["AudioPrints"]) -> "AudioPrints":
        """Return the fingerprints of several sequences of files, one after the other."""
        counts = np.concatenate([np.diff(part.start_S) for part in parts])
        return cls(
            np.concatenate([part.code_S for part in parts]),
            np.concatenate([[0], np.cumsum(counts)]),
            np.concatenate([part.words for part in parts]),
            np.concatenate([part.flips for part in parts]),
        )

    def take(self, index: NDArray[np.int64]) -> "AudioPrints":
        """Return some of them, in the given order."""
        counts = np.diff(self.start_S)[index]
        start = np.concatenate([[0], np.cumsum(counts)])
        places = np.repeat(self.start_S[index] - start[:-1], counts) + np.arange(start[-1])
        return AudioPrints(self.code_S[index], start, self.words[places], self.flips[places])

    def pairs(self, threshold: float, wanted: Wanted) -> Iterator[Pairs]:
        """Yield pairs of files that differ in at most ``threshold`` of the bits of their overlap; some several times."""
        file_W = np.repeat(np.arange(len(self)), np.diff(self.start_S))
        place_W = np.arange(len(self.words)) - self.start_S[file_W]
        heard = np.flatnonzero(self.words)
        order = heard[np.argsort(self.words[heard], kind="stable")]
        sorted_words = self.words[order]
        for probe in range(_PROBES + 1):
            key = self.words[heard] if probe == 0 else self.words[heard] ^ self.flips[heard, probe - 1]
            first, last = (np.searchsorted(sorted_words, key, side) for side in ("left", "right"))
            for mine, theirs in _expanded(heard, order, first, last):
                left, right = file_W[mine], file_W[theirs]
                kept = (left < right) if probe == 0 else (left != right)
                kept[kept] = wanted(left[kept], right[kept])
                shift = place_W[theirs[kept]] - place_W[mine[kept]]
                found = np.unique(np.stack([left[kept], right[kept], shift]), axis=1)
                if found.shape[1]:
                    rate = self._bit_errors(*found)
                    near = rate <= threshold
                    yield found[0][near], found[1][near], rate[near]

    def _bit_errors(self, left: NDArray[np.int64], right: NDArray[np.int64], shift: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the share of bits that differ, 1 for a short overlap; the right file starts ``shift`` words earlier."""
        counts = np.diff(self.start_S)
        begin = np.maximum(0, -shift)  # of the overlap, in words of the left file
        length = np.minimum(counts[left], counts[right] - shift) - begin
        rate = np.ones(len(left))
        enough = length >= np.maximum(_LEAST_WORDS, _LEAST_OVERLAP * np.minimum(counts[left], counts[right]))
        chosen = np.flatnonzero(enough)
        for first in range(0, len(chosen), 4096):
            part = chosen[first : first + 4096]
            sizes = length[part]
            ends = np.cumsum(sizes)
            within = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
            mine = self.words[np.repeat(self.start_S[left[part]] + begin[part], sizes) + within]
            theirs = self.words[np.repeat(self.start_S[right[part]] + begin[part] + shift[part], sizes) + within]
            both = (mine != 0) & (theirs != 0)
            alone = (mine != 0) ^ (theirs != 0)
            wrong = np.where(both, np.bitwise_count(mine ^ theirs), np.where(alone, 16, 0))
            heard = np.add.reduceat((both | alone).astype(np.int64), ends - sizes)
            differ = np.add.reduceat(wrong.astype(np.int64), ends - sizes)
            rate[part] = np.where(heard >= _LEAST_WORDS, differ / np.maximum(32 * heard, 1), 1.0)
        return rate


def _expanded(
    heard: NDArray[np.int64], order: NDArray[np.int64], first: NDArray[np.int64], last: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield each word with every word in its range of ``order``, in blocks."""
    sizes = last - first
    ends = np.cumsum(sizes)
    start = 0
    while start < len(heard):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + BLOCK, side="right")))
        part = sizes[start:stop]
        within = np.arange(int(part.sum())) - np.repeat(np.cumsum(part) - part, part)
        if len(within):
            yield np.repeat(heard[start:stop], part), order[np.repeat(first[start:stop], part) + within]
        start = stop


_EDGES = np.geomspace(150, 3600, _BANDS + 1)


def _words(file: bytes) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    nothing = np.empty(0, np.uint32), np.empty((0, _PROBES), np.uint32)
    try:
        segment, span = next(decode_audio(file, 0, 1, _Settings()))
    except MediaError:
        return nothing
    assert span.stop is not None
    sound_T = segment["waveform"].astype(np.float32)[: round(float(span.stop) * _RATE)]
    peak = float(np.abs(sound_T).max(initial=0))
    if not peak:
        return nothing
    padded_T = np.pad(sound_T / peak, _WINDOW // 2)
    frames_FT = np.lib.stride_tricks.sliding_window_view(padded_T, _WINDOW)[::_HOP]
    bins = np.fft.rfftfreq(_WINDOW, 1 / _RATE)
    low, high = np.searchsorted(bins, (_EDGES[0], _EDGES[-1]))
    window_T = np.hanning(_WINDOW).astype(np.float32)
    band_FB = np.empty((len(frames_FT), _BANDS), np.float64)
    starts = np.searchsorted(bins[low:high], _EDGES[:-1])
    for first in range(0, len(frames_FT), 256):
        power = np.abs(np.fft.rfft(frames_FT[first : first + 256] * window_T, axis=1)[:, low:high]) ** 2
        band_FB[first : first + 256] = np.add.reduceat(power, starts, axis=1)
    difference = np.diff(np.diff(band_FB, axis=1), axis=0)
    scale = band_FB.sum(axis=1)
    words = np.packbits(difference > 0, axis=1, bitorder="little").view(np.uint32).ravel()
    relative = np.abs(difference) / (band_FB[1:, 1:] + band_FB[:-1, 1:] + band_FB[1:, :-1] + band_FB[:-1, :-1] + 1e-30)
    flips = (np.uint32(1) << np.argsort(relative, axis=1)[:, :_PROBES].astype(np.uint32)).astype(np.uint32)
    silent = np.minimum(scale[1:], scale[:-1]) < _SILENCE * scale.max()
    words = np.where(silent, 0, np.maximum(words, 1)).astype(np.uint32)
    return words, flips
