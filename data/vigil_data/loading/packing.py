"""Decoded and packed items: a batch as numpy arrays, shared by training and the torch-free runtime."""

from collections.abc import Container, Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vigil_data.items import BODY, MODALITIES, ROLES, Item, Modality, Role, Time


@dataclass(frozen=True, slots=True)
class Span:
    """Position and role of a segment within its item, for the model and for showing evidence.

    Attributes:
        index: position among the item's media of the same modality.
        start: first character (text) or start in seconds (audio); 0 for an image.
        stop: one past the last character, or end in seconds; 0 for an image.
        role: role of the text, image or audio file that it is part of.
        time: start and end in seconds of a window of audio, or of the timed text that a passage is part of.
    """

    index: int
    start: float = 0
    stop: float = 0
    role: Role = BODY
    time: Time | None = None

    def placed(self, item: Item, modality: Modality, index: int) -> "Span":
        """Return the span of a segment of one of an item's media, with that medium's index, role and time."""
        time = (self.start, self.stop) if modality == "audio" else item.time(modality, index)
        return replace(self, index=index, role=item.role(modality, index), time=time)


_ROLE_NUMBERS = {role: number for number, role in enumerate(ROLES)}
NO_TIME = (-1.0, -1.0)
"""Time of a segment that has none."""

Segment = tuple[Mapping[str, NDArray[np.generic]], Span]
"""One decoded segment: the encoder's inputs, and its position in the item."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """One item's segments of one modality: the encoder's inputs for each segment, and the segments' spans."""

    arrays: Sequence[Mapping[str, NDArray[np.generic]]]
    spans: Sequence[Span]


def gather(segments: Generator[Segment, None, int]) -> tuple[Decoded, int]:
    """Collect one medium's segments from a decoder, and the number of omitted ones."""
    arrays: list[Mapping[str, NDArray[np.generic]]] = []
    spans: list[Span] = []
    while True:
        try:
            array, span = next(segments)
        except StopIteration as end:
            return Decoded(arrays, spans), end.value
        arrays.append(array)
        spans.append(span)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An item that could not be decoded: one row of the quarantine table."""

    id: str
    modality: str
    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class DecodedItem:
    """An item whose segments are arrays; modalities without a segment are absent.

    Attributes:
        id: the item's id.
        segments: modality to its decoded segments.
        targets: float32 ``[L]``, NaN for unknown.
        cut: modality to the number of segments omitted beyond the recipe's limit.
    """

    id: str
    segments: Mapping[Modality, Decoded]
    targets: NDArray[np.float32]
    cut: Mapping[Modality, int]


def spans_of(role_S: NDArray[np.generic], time_S2: NDArray[np.generic]) -> tuple[Span, ...]:
    """Return spans with the given roles and times and no other place; see :class:`PackedSegments`."""
    times = [None if start < 0 else (start, end) for start, end in time_S2.astype(np.float64).tolist()]
    return tuple(Span(0, role=ROLES[role], time=time) for role, time in zip(role_S.tolist(), times, strict=True))


@dataclass(frozen=True, slots=True)
class PackedSegments:
    """The segments of one modality: ``item`` int64 ``[S]`` ascending, ``inputs`` each ``[S, ...]``, ``spans`` of length S."""

    item: NDArray[np.int64]
    inputs: dict[str, NDArray[np.generic]]
    spans: tuple[Span, ...]

    @property
    def role(self) -> NDArray[np.int64]:
        """The place of each segment's role in :data:`vigil_data.items.ROLES`, int64 ``[S]``."""
        return np.array([_ROLE_NUMBERS[span.role] for span in self.spans], np.int64)

    @property
    def time(self) -> NDArray[np.float32]:
        """Start and end of each segment in seconds, float32 ``[S, 2]``; :data:`NO_TIME` for a segment without a time."""
        return np.array([span.time or NO_TIME for span in self.spans], np.float32).reshape(-1, 2)

    def placement(self, modality: Modality, names: Container[str]) -> dict[str, NDArray[np.generic]]:
        """Return what a fusion graph takes with the tokens: ``item``, and ``role`` and ``time`` if it takes them.

        Args:
            modality: the modality of the segments.
            names: the graph's inputs, such as ``text_item`` and ``text_role``.
        """
        return {name: getattr(self, name) for name in ("item", "role", "time") if f"{modality}_{name}" in names}


NO_SEGMENTS = PackedSegments(np.empty(0, np.int64), {}, ())


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch as arrays; see :class:`vigil_data.loading.batch.Batch` for its attributes."""

    ids: tuple[str, ...]
    segments: Mapping[Modality, PackedSegments]
    targets: NDArray[np.float32]
    refused: tuple[Refusal, ...] = ()


def pack(items: Sequence[DecodedItem], refused: Sequence[Refusal] = ()) -> Packed:
    """Pack decoded items: rows in the given order, segments in the order of their items.

    Arrays of unequal length in their last axis (token ids) are padded at the end with zeros to the longest of the batch; a padded
    token has attention mask 0.

    Args:
        items: items from one :class:`vigil_data.decode.Decoder`.
        refused: items that could not be decoded, for the count.
    """
    segments: dict[Modality, PackedSegments] = {}
    for modality in MODALITIES:
        rows = [(row, item.segments[modality]) for row, item in enumerate(items) if modality in item.segments]
        arrays = [array for _, decoded in rows for array in decoded.arrays]
        if arrays:
            segments[modality] = PackedSegments(
                np.repeat([row for row, _ in rows], [len(decoded.arrays) for _, decoded in rows]).astype(np.int64),
                {name: _stack([array[name] for array in arrays]) for name in arrays[0]},
                tuple(span for _, decoded in rows for span in decoded.spans),
            )
    targets = np.stack([item.targets for item in items]) if items else np.empty((0, 0), np.float32)
    return Packed(tuple(item.id for item in items), segments, targets, tuple(refused))


def _stack(arrays: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
    lengths = {array.shape[-1] for array in arrays}
    if len(lengths) == 1:
        return np.stack(arrays)
    longest = max(lengths)
    stacked = np.zeros((len(arrays), *arrays[0].shape[:-1], longest), arrays[0].dtype)
    for row, array in enumerate(arrays):
        stacked[row, ..., : array.shape[-1]] = array
    return stacked
