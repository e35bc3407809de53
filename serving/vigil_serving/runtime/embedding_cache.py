"""From media to their encoders' tokens: decoded as a stream, encoded in runs of similar length, and remembered.

A window of sound is dropped as soon as it is encoded, so an hour holds no more than one run of windows. A medium that is seen
again, in the same call or a later one, is neither decoded nor encoded again: spam, samples and covers repeat.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.decode import Decoder, Undecodable
from vigil_data.items import Item, Modality
from vigil_data.loading.packing import Decoded, DecodedItem, Span, pack
from vigil_serving.runtime.onnx_sessions import RUN_LIMITS, Sessions, encode

Key = tuple[Modality, bytes]
"""A medium's modality, and the SHA-256 of its content."""


@dataclass(slots=True)
class Medium:
    """One text, picture or sound on its way through its encoder.

    Attributes:
        spans: where its segments lie; of index 0, for it may be part of several items.
        tokens: of each segment ``[P, D]``; ``None`` while it waits.
        limit: the most segments that were taken of it.
        cut: segments beyond the limit that were left out.
    """

    limit: int
    spans: list[Span] = field(default_factory=list)
    tokens: list[NDArray[np.float32] | None] = field(default_factory=list)
    cut: int = 0

    def serves(self, limit: int) -> bool:
        """Whether it is what another ``limit`` would have made of it."""
        return limit == self.limit or (self.cut == 0 and len(self.spans) <= limit)


class Embedded(NamedTuple):
    """An item's media by modality, in order; they are complete once :meth:`Gathering.finish` was called."""

    media: Mapping[Modality, list[Medium]]

    @property
    def cut(self) -> int:
        """Segments that were left out."""
        return sum(medium.cut for media in self.media.values() for medium in media)

    def spans(self, modality: Modality) -> list[Span]:
        """The item's segments of a modality."""
        return [replace(s, index=index) for index, medium in enumerate(self.media.get(modality, ())) for s in medium.spans]

    def tokens(self, modality: Modality) -> list[NDArray[np.float32]]:
        """Of each segment ``[P, D]``."""
        return [token for medium in self.media.get(modality, ()) for token in medium.tokens if token is not None]


class Cache:
    """Media that were encoded, the least recently used forgotten first; safe to share between threads.

    Args:
        most: bytes of tokens that are held; 0 holds nothing.

    Attributes:
        hits: media that were found.
        misses: media that were not.
    """

    def __init__(self, most: int) -> None:
        self.hits = self.misses = 0
        self._most, self._bytes = most, 0
        self._media: OrderedDict[Key, Medium] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key, limit: int) -> Medium | None:
        """Look up a medium of which at most ``limit`` segments are wanted."""
        with self._lock:
            medium = self._media.get(key)
            if medium is None or not medium.serves(limit):
                self.misses += 1
                return None
            self.hits += 1
            self._media.move_to_end(key)
            return medium

    def put(self, key: Key, medium: Medium) -> None:
        """Remember a medium whose segments are all encoded."""
        with self._lock:
            if _size(medium) > self._most:
                return
            if (former := self._media.pop(key, None)) is not None:
                self._bytes -= _size(former)
            self._media[key] = medium
            self._bytes += _size(medium)
            while self._bytes > self._most:
                self._bytes -= _size(self._media.popitem(last=False)[1])


class Gathering:
    """The media of one call; not to be shared between threads.

    Args:
        decoder: of the bundle.
        sessions: the bundle's graphs.
        cache: what is remembered from other calls.
    """

    def __init__(self, decoder: Decoder, sessions: Sessions, cache: Cache) -> None:
        self._decoder, self._sessions, self._cache = decoder, sessions, cache
        self._met: dict[Key, Medium] = {}
        self._waiting: dict[Modality, list[tuple[Medium, int, Mapping[str, NDArray[np.generic]]]]] = {}

    def add(self, item: Item) -> Embedded:
        """Decode an item's media that are not known yet; encoders run whenever there is enough for one run.

        Raises:
            Undecodable: one of its media cannot be decoded.
        """
        media: dict[Modality, list[Medium]] = {}
        for modality, limit in self._decoder.limits.items():
            left = limit
            for index, payload in enumerate(getattr(item, modality)):
                medium = self._medium(modality, payload, index, left)
                left -= len(medium.spans)
                media.setdefault(modality, []).append(medium)
        return Embedded(media)

    def finish(self) -> None:
        """Encode everything that waits, and remember it."""
        for modality in list(self._waiting):
            self._encode(modality)
        for key, medium in self._met.items():
            self._cache.put(key, medium)
        self._met.clear()

    def _medium(self, modality: Modality, payload: str | bytes, index: int, limit: int) -> Medium:
        content = payload.encode("utf-8", "surrogatepass") if isinstance(payload, str) else payload
        key = (modality, hashlib.sha256(content).digest())
        if (met := self._met.get(key)) is not None and met.serves(limit):
            return met
        if (known := self._cache.get(key, limit)) is not None:
            return known
        medium = Medium(limit)
        waiting = self._waiting.setdefault(modality, [])
        segments = self._decoder.segments(modality, payload, index, limit)
        try:
            while True:
                arrays, span = next(segments)
                waiting.append((medium, len(medium.spans), arrays))
                medium.spans.append(replace(span, index=0))
                medium.tokens.append(None)
                # Texts wait for each other, since those of like length go well together, and they are small.
                if modality != "text" and len(waiting) >= RUN_LIMITS[modality]:
                    self._encode(modality)
        except StopIteration as end:
            medium.cut = end.value
        except Undecodable:
            waiting[:] = [entry for entry in waiting if entry[0] is not medium]
            raise
        self._met[key] = medium
        return medium

    def _encode(self, modality: Modality) -> None:
        waiting = self._waiting[modality]
        if not waiting:
            return
        segments = Decoded([arrays for *_, arrays in waiting], [medium.spans[place] for medium, place, _ in waiting])
        packed = pack([DecodedItem("", {modality: segments}, np.empty(0, np.float32), {})]).segments[modality]
        tokens_SPD = encode(self._sessions.encoders[modality], packed, RUN_LIMITS[modality])
        for (medium, place, _), tokens_PD in zip(waiting, tokens_SPD, strict=True):
            # A copy: a view would keep the whole run for as long as the cache keeps one of its segments.
            medium.tokens[place] = tokens_PD.copy()
        waiting.clear()


def _size(medium: Medium) -> int:
    """Bytes that a medium takes, its key and the bookkeeping of Python included, roughly."""
    return 500 + sum(300 + token.nbytes for token in medium.tokens if token is not None)
