"""Decoding of media into arrays, shared by training and serving; nothing here imports torch.

Example:
    >>> decoder = Decoder(recipe.inputs, labels=("spam", "scam"))
    >>> decoder.decode(item).segments["image"].arrays[0]["pixels"].shape
    (3, 224, 224)
"""

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
from vigil_data.decode.text import decode_text, load_normalizer, load_tokenizer, set_up, token_places
from vigil_data.errors import MediaError
from vigil_data.items import Item, Modality
from vigil_data.loading.packing import Decoded, DecodedItem, Packed, Refusal, Segment, Span, gather, pack
from vigil_data.settings import Settings

__all__ = ["Decoder", "Facts", "Undecodable", "probe"]

_DecodeOne = Callable[[Any, int, int], Generator[Segment, None, int]]
"""A payload, its index and the maximum number of segments -> its segments, and the number of omitted ones."""


class Decoder:
    """Decoder of items into a model's inputs; modalities that the model lacks are ignored.

    It can be pickled with its tokenizer, for worker processes.

    Args:
        inputs: the modalities of the model and how each is decoded.
        labels: the labels, in the order of :attr:`DecodedItem.targets`.

    Attributes:
        limits: modality to the maximum number of segments of one item, for the modalities of the model.

    Raises:
        UserError: if the tokenizer is missing or does not fit ``inputs``.
    """

    def __init__(self, inputs: Settings, labels: Sequence[str]) -> None:
        self.inputs = inputs
        self.labels = tuple(labels)
        self._set_up(load_tokenizer(inputs.text) if inputs.text else None)

    def __getstate__(self) -> tuple[Settings, tuple[str, ...], str | None]:
        return self.inputs, self.labels, self._tokenizer.to_str() if self._tokenizer else None

    def __setstate__(self, state: tuple[Settings, tuple[str, ...], str | None]) -> None:
        # A pickled Tokenizer loses encode_special_tokens, so it is set up again.
        self.inputs, self.labels, definition = state
        self._set_up(set_up(definition, self.inputs.text) if definition and self.inputs.text else None)

    def decode(self, item: Item) -> DecodedItem:
        """Decode one item.

        Args:
            item: the item; all media of a modality share that modality's limit of segments, in order.

        Raises:
            Undecodable: if one of its media cannot be decoded.
        """
        segments: dict[Modality, Decoded] = {}
        cut: dict[Modality, int] = {}
        for modality, limit in self.limits.items():
            arrays: list[Mapping[str, NDArray[np.generic]]] = []
            spans: list[Span] = []
            left_out = 0
            for index, payload in enumerate(getattr(item, modality)):
                if not self.reads(item, modality, index):
                    continue
                decoded, more = gather(self.segments(modality, payload, index, limit - len(spans)))
                arrays.extend(decoded.arrays)
                spans.extend(span.placed(item, modality, index) for span in decoded.spans)
                left_out += more
            if spans:
                segments[modality] = Decoded(arrays, spans)
            if left_out:
                cut[modality] = left_out
        known = [item.targets.get(label) for label in self.labels]
        targets_L = np.array([np.nan if target is None else target for target in known], np.float32)
        return DecodedItem(item.id, segments, targets_L, cut)

    def reads(self, item: Item, modality: Modality, index: int) -> bool:
        """Whether the model reads a text, image or audio file; it may leave out texts of some roles."""
        roles = self.inputs.text.roles if modality == "text" and self.inputs.text is not None else None
        return roles is None or item.role(modality, index) in roles

    def decode_all(self, items: Iterable[Item], change: Callable[[DecodedItem], DecodedItem] | None = None) -> Packed:
        """Decode and pack items; undecodable ones are omitted and listed in :attr:`Packed.refused`.

        Args:
            items: the items.
            change: called with each decoded item; returns the item to pack (default: the same).
        """
        decoded: list[DecodedItem] = []
        refused: list[Refusal] = []
        for item in items:
            try:
                one = self.decode(item)
                decoded.append(one if change is None else change(one))
            except Undecodable as error:
                refused.append(Refusal(item.id, error.modality, error.index, error.reason))
        packed = pack(decoded, refused)
        return packed if decoded else replace(packed, targets=np.empty((0, len(self.labels)), np.float32))

    def token_places(self, item: Item) -> list[tuple[int, NDArray[np.int64]]]:
        """Return, for each text segment of :meth:`decode`, which text it is of and the characters of its tokens.

        The texts are tokenized once more. See :func:`vigil_data.decode.text.token_places`.
        """
        text, tokenizer = self.inputs.text, self._tokenizer
        if text is None or tokenizer is None:
            return []
        found: list[tuple[int, NDArray[np.int64]]] = []
        for index, payload in enumerate(item.text):
            if self.reads(item, "text", index):
                places = token_places(payload, text.max_passages - len(found), text, tokenizer, normalize=self._normalize)
                found += [(index, places_T2) for places_T2 in places]
        return found

    def segments(self, modality: Modality, payload: Any, index: int, limit: int) -> Generator[Segment, None, int]:
        """Decode one medium, segment by segment.

        Args:
            modality: its modality, one of :attr:`limits`.
            payload: the text, or the encoded image or audio.
            index: position among the item's media of that modality, for the spans.
            limit: maximum number of segments.

        Yields:
            Its segments.

        Returns:
            The number of omitted segments.

        Raises:
            Undecodable: if it cannot be decoded; this may be raised after some segments.
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
            self._normalize = load_normalizer(text)
            self._decoders["text"] = partial(decode_text, spec=text, tokenizer=tokenizer, normalize=self._normalize)
        if image is not None:
            self.limits["image"] = image.max_images
            self._decoders["image"] = partial(decode_image, spec=image)
        if audio is not None:
            self.limits["audio"] = audio.max_windows
            self._decoders["audio"] = partial(decode_audio, spec=audio)
