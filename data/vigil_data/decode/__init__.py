"""Bytes to arrays, once and the same way for training and serving: nothing here imports torch."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vigil_data.decode.audio import decode_audio
from vigil_data.decode.image import decode_image
from vigil_data.decode.probe import Facts, Undecodable, probe
from vigil_data.decode.text import decode_text, load_tokenizer, set_up
from vigil_data.errors import MediaError
from vigil_data.items import Item, Modality
from vigil_data.loading.packing import Decoded, DecodedItem, Packed, Refusal, Segment, Span, gather, pack
from vigil_data.settings import Settings

__all__ = ["Decoder", "Facts", "Undecodable", "probe"]

_DecodeOne = Callable[[Any, int, int], Generator[Segment, None, int]]
"""A payload, its index and the most segments to give -> its segments, and how many more were left out."""


class Decoder:
    """Decodes items to what a model takes; modalities that the model does not take are not looked at.

    It can be pickled, so that worker processes need not find the tokenizer again.

    Args:
        inputs: the modalities of the model and how each is decoded.
        labels: the labels, in the order of :attr:`DecodedItem.targets`.

    Attributes:
        limits: modality to the most segments that are taken of one item, for the modalities that the model takes.

    Raises:
        UserError: the tokenizer is absent or does not fit ``inputs``.
    """

    def __init__(self, inputs: Settings, labels: Sequence[str]) -> None:
        self.inputs = inputs
        self.labels = tuple(labels)
        self._set_up(load_tokenizer(inputs.text) if inputs.text else None)

    def __getstate__(self) -> tuple[Settings, tuple[str, ...], str | None]:
        return self.inputs, self.labels, self._tokenizer.to_str() if self._tokenizer else None

    def __setstate__(self, state: tuple[Settings, tuple[str, ...], str | None]) -> None:
        # A pickled Tokenizer forgets encode_special_tokens, so it is set up anew.
        self.inputs, self.labels, definition = state
        self._set_up(set_up(definition, self.inputs.text) if definition and self.inputs.text else None)

    def decode(self, item: Item) -> DecodedItem:
        """Decode one item.

        Args:
            item: its texts, pictures and sounds share their modality's limit of segments, in order.

        Raises:
            Undecodable: one of its media cannot be decoded.
        """
        segments: dict[Modality, Decoded] = {}
        cut: dict[Modality, int] = {}
        for modality, limit in self.limits.items():
            arrays: list[Mapping[str, NDArray[np.generic]]] = []
            spans: list[Span] = []
            left_out = 0
            for index, payload in enumerate(getattr(item, modality)):
                decoded, more = gather(self.segments(modality, payload, index, limit - len(spans)))
                arrays.extend(decoded.arrays)
                spans.extend(decoded.spans)
                left_out += more
            if spans:
                segments[modality] = Decoded(arrays, spans)
            if left_out:
                cut[modality] = left_out
        known = [item.targets.get(label) for label in self.labels]
        targets_L = np.array([np.nan if target is None else target for target in known], np.float32)
        return DecodedItem(item.id, segments, targets_L, cut)

    def decode_all(self, items: Iterable[Item]) -> Packed:
        """Decode and pack items; those that cannot be decoded are left out and listed in :attr:`Packed.refused`."""
        decoded: list[DecodedItem] = []
        refused: list[Refusal] = []
        for item in items:
            try:
                decoded.append(self.decode(item))
            except Undecodable as error:
                refused.append(Refusal(item.id, error.modality, error.index, error.reason))
        packed = pack(decoded, refused)
        return packed if decoded else replace(packed, targets=np.empty((0, len(self.labels)), np.float32))

    def segments(self, modality: Modality, payload: Any, index: int, limit: int) -> Generator[Segment, None, int]:
        """Decode one medium, segment by segment.

        Args:
            modality: its modality, one of :attr:`limits`.
            payload: the text, or the encoded picture or sound.
            index: which of the item's media of that modality it is, for the spans.
            limit: the most segments to give.

        Yields:
            Its segments.

        Returns:
            How many more were left out.

        Raises:
            Undecodable: it cannot be decoded, which may show after some of its segments.
        """
        try:
            return (yield from self._decoders[modality](payload, index, limit))
        except MediaError as error:
            raise Undecodable(modality, index, str(error)) from None

    def _set_up(self, tokenizer: Tokenizer | None) -> None:
        text, image, audio = self.inputs.text, self.inputs.image, self.inputs.audio
        self._tokenizer = tokenizer
        self.limits: dict[Modality, int] = {}
        self._decoders: dict[Modality, _DecodeOne] = {}
        if text is not None and tokenizer is not None:
            self.limits["text"] = text.max_passages
            self._decoders["text"] = partial(decode_text, spec=text, tokenizer=tokenizer)
        if image is not None:
            self.limits["image"] = image.max_images
            self._decoders["image"] = partial(decode_image, spec=image)
        if audio is not None:
            self.limits["audio"] = audio.max_windows
            self._decoders["audio"] = partial(decode_audio, spec=audio)
