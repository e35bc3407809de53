"""Decoded and packed items: a batch as numpy arrays, shared by training and the torch-free runtime."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vigil_data.items import MODALITIES, Modality


@dataclass(frozen=True, slots=True)
class Span:
    """Position of a segment within its item, for showing evidence.

    Attributes:
        index: position among the item's media of the same modality.
        start: first character (text) or start in seconds (audio); 0 for an image.
        stop: one past the last character, or end in seconds; 0 for an image.
    """

    index: int
    start: float = 0
    stop: float = 0


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


@dataclass(frozen=True, slots=True)
class PackedSegments:
    """The segments of one modality: ``item`` int64 ``[S]`` ascending, ``inputs`` each ``[S, ...]``, ``spans`` of length S."""

    item: NDArray[np.int64]
    inputs: dict[str, NDArray[np.generic]]
    spans: tuple[Span, ...]


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
    longest = max(array.shape[-1] for array in arrays)
    stacked = np.zeros((len(arrays), *arrays[0].shape[:-1], longest), arrays[0].dtype)
    for row, array in enumerate(arrays):
        stacked[row, ..., : array.shape[-1]] = array
    return stacked
