"""Streaming encoding of media, and a cache of their embeddings.

Media are decoded as a stream and encoded in runs of similar length. An audio window is dropped once it is encoded, so memory
holds one run of windows however long the audio is. A medium that appears again, in the same call or in a later one, is neither
decoded nor encoded again: spam, samples and covers repeat.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.decode import Decoder, Undecodable
from vigil_data.items import Item, Modality
from vigil_data.loading.packing import Decoded, DecodedItem, Span, pack
from vigil_serving.runtime.onnx_sessions import Sessions
from vigil_serving.runtime.run_limits import RUN_LIMITS

Key = tuple[Modality, bytes]
"""A medium's modality, and the SHA-256 of its content."""


@dataclass(slots=True)
class EncodedMedium:
    """Segments of one text, image or sound, and their embeddings.

    Attributes:
        limit: maximum number of segments that were read.
        spans: place of each segment; index, role and time are those of no item, since a medium may belong to several.
        tokens: embedding ``[P, D]`` of each segment, or the token ids ``[T]`` of a guard's text; ``None`` until it is encoded.
        cut: segments left out because of the limit.
    """

    limit: int
    spans: list[Span] = field(default_factory=list)
    tokens: list[NDArray[Any] | None] = field(default_factory=list)
    cut: int = 0

    def matches(self, limit: int) -> bool:
        """Whether reading the medium with ``limit`` would give the same segments."""
        return limit == self.limit or (self.cut == 0 and len(self.spans) <= limit)


class EncodedItem(NamedTuple):
    """An item and its media by modality, in order; their tokens are complete after :meth:`MediaEncoder.finish`."""

    item: Item
    media: Mapping[Modality, list[EncodedMedium]]

    @property
    def cut(self) -> int:
        """Segments left out because of limits."""
        return sum(medium.cut for media in self.media.values() for medium in media)

    def spans(self, modality: Modality) -> list[Span]:
        """Return the place of each segment of a modality."""
        media = enumerate(self.media.get(modality, ()))
        return [span.placed(self.item, modality, index) for index, medium in media for span in medium.spans]

    def tokens(self, modality: Modality) -> list[NDArray[Any]]:
        """Return the tokens of each segment of a modality; see :class:`EncodedMedium`."""
        return [token for medium in self.media.get(modality, ()) for token in medium.tokens if token is not None]


class EmbeddingCache:
    """Least-recently-used cache of encoded media; safe to share between threads.

    Args:
        max_bytes: maximum size of the embeddings; 0 caches nothing.

    Attributes:
        hits: lookups that found the medium.
        misses: lookups that did not.
    """

    def __init__(self, max_bytes: int) -> None:
        self.hits = self.misses = 0
        self._max_bytes, self._bytes = max_bytes, 0
        self._media: OrderedDict[Key, EncodedMedium] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key, limit: int) -> EncodedMedium | None:
        """Look up a medium read with at most ``limit`` segments."""
        with self._lock:
            medium = self._media.get(key)
            if medium is None or not medium.matches(limit):
                self.misses += 1
                return None
            self.hits += 1
            self._media.move_to_end(key)
            return medium

    def put(self, key: Key, medium: EncodedMedium) -> None:
        """Add a medium whose segments are all encoded."""
        with self._lock:
            if _size(medium) > self._max_bytes:
                return
            if (former := self._media.pop(key, None)) is not None:
                self._bytes -= _size(former)
            self._media[key] = medium
            self._bytes += _size(medium)
            while self._bytes > self._max_bytes:
                self._bytes -= _size(self._media.popitem(last=False)[1])


class MediaEncoder:
    """Decoder and encoder of the media of one call; not to be shared between threads.

    Args:
        decoder: the bundle's decoder.
        sessions: the bundle's graphs.
        cache: media encoded in other calls.
    """

    def __init__(self, decoder: Decoder, sessions: Sessions, cache: EmbeddingCache) -> None:
        self._decoder, self._sessions, self._cache = decoder, sessions, cache
        self._seen: dict[Key, EncodedMedium] = {}
        self._waiting: dict[Modality, list[tuple[EncodedMedium, int, Mapping[str, NDArray[np.generic]]]]] = {}

    def add(self, item: Item) -> EncodedItem:
        """Decode the item's media that are not cached; encoders run as soon as one run is full.

        Raises:
            Undecodable: if one of the media cannot be decoded.
        """
        media: dict[Modality, list[EncodedMedium]] = {}
        for modality, limit in self._decoder.limits.items():
            left = limit
            for index, payload in enumerate(getattr(item, modality)):
                reads = self._decoder.reads(item, modality, index)
                medium = self._medium(modality, payload, index, left) if reads else EncodedMedium(left)
                left -= len(medium.spans)
                media.setdefault(modality, []).append(medium)
        return EncodedItem(item, media)

    def finish(self) -> None:
        """Encode all waiting segments and add the media to the cache."""
        for modality in list(self._waiting):
            self._encode(modality)
        for key, medium in self._seen.items():
            self._cache.put(key, medium)
        self._seen.clear()

    def _medium(self, modality: Modality, payload: str | bytes, index: int, limit: int) -> EncodedMedium:
        content = payload.encode("utf-8", "surrogatepass") if isinstance(payload, str) else payload
        key = (modality, hashlib.sha256(content).digest())
        if (seen := self._seen.get(key)) is not None and seen.matches(limit):
            return seen
        if (cached := self._cache.get(key, limit)) is not None:
            return cached
        medium = EncodedMedium(limit)
        waiting = self._waiting.setdefault(modality, [])
        segments = self._decoder.segments(modality, payload, index, limit)
        try:
            while True:
                arrays, span = next(segments)
                waiting.append((medium, len(medium.spans), arrays))
                medium.spans.append(replace(span, index=0))
                medium.tokens.append(None)
                # Texts are small and wait for each other, so that texts of similar length are encoded together.
                if modality != "text" and len(waiting) >= RUN_LIMITS[modality]:
                    self._encode(modality)
        except StopIteration as end:
            medium.cut = end.value
        except Undecodable:
            waiting[:] = [entry for entry in waiting if entry[0] is not medium]
            raise
        self._seen[key] = medium
        return medium

    def _encode(self, modality: Modality) -> None:
        waiting = self._waiting[modality]
        if not waiting:
            return
        segments = Decoded([arrays for *_, arrays in waiting], [medium.spans[place] for medium, place, _ in waiting])
        packed = pack([DecodedItem("", {modality: segments}, np.empty(0, np.float32), {})]).segments[modality]
        for (medium, place, _), tokens_PD in zip(waiting, self._sessions.encode(modality, packed), strict=True):
            # A copy: a view would keep the full run in memory for as long as the cache keeps one of its segments.
            medium.tokens[place] = tokens_PD.copy()
        waiting.clear()


def _size(medium: EncodedMedium) -> int:
    """Approximate size in bytes, including the key and Python objects."""
    return 500 + sum(300 + token.nbytes for token in medium.tokens if token is not None)
