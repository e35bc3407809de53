"""Augmentation of items in the training loader: texts before they are decoded, pixels and waveforms after."""

from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vigil_data.augmentation.audio import augment_waveform
from vigil_data.augmentation.image import augment_pixels
from vigil_data.augmentation.specs import Augmentation
from vigil_data.augmentation.text import augment_texts
from vigil_data.items import Item, Modality
from vigil_data.loading.packing import Decoded, DecodedItem, Span
from vigil_data.settings import Settings

if TYPE_CHECKING:
    from vigil_data.decode import Decoder

Arrays = Mapping[str, NDArray[Any]]


class Augmenter:
    """Random changes of items; those of an item depend only on the seed, the epoch and its id.

    Args:
        spec: what to change.
        inputs: how media are decoded.
        seed: the recipe's seed.
        epoch: the current epoch.
    """

    def __init__(self, spec: Augmentation, inputs: Settings, seed: int, epoch: int) -> None:
        self._spec = spec
        self._inputs = inputs
        self._seed = seed
        self._epoch = epoch

    def augment_item(self, item: Item, decoder: "Decoder") -> Item:
        """Return the item with augmented texts, each cut to the number of tokens that it had, for which its batch was planned.

        Separated letters are three times as many tokens, and one such text would make all others of its batch as long.
        """
        changed = replace(item, text=augment_texts(item.text, self._spec.text, self._rng(item.id, "text")))
        if changed.text == item.text:
            return item
        room, stops = _token_stops(item, decoder), _token_stops(changed, decoder)
        cuts = {index: found[len(room[index]) - 1] for index, found in stops.items() if len(found) > len(room.get(index, found))}
        return replace(changed, text=tuple(text[: cuts.get(index)] for index, text in enumerate(changed.text)))

    def augment_decoded(self, item: DecodedItem) -> DecodedItem:
        """Return the decoded item with augmented pixels and waveforms."""
        segments = dict(item.segments)
        if "image" in segments:
            segments["image"] = self._changed(item.id, "image", segments["image"])
        if "audio" in segments:
            segments["audio"] = self._changed(item.id, "audio", segments["audio"])
        return replace(item, segments=segments)

    def _changed(self, id_: str, modality: Modality, decoded: Decoded) -> Decoded:
        change = self._image if modality == "image" else self._audio
        arrays = [change(id_, array, span) for array, span in zip(decoded.arrays, decoded.spans, strict=True)]
        return replace(decoded, arrays=arrays)

    def _image(self, id_: str, arrays: Arrays, span: Span) -> Arrays:
        spec, rng, pixels_CHW = self._spec.image, self._rng(id_, f"image {span.index}"), arrays["pixels"]
        if spec.rand_augment is not None:
            from vigil_data.augmentation.rand_augment import rand_augment  # lazy: torchvision takes a second

            pixels_CHW = rand_augment(pixels_CHW, spec.rand_augment, rng.getrandbits(63))
        return {**arrays, "pixels": augment_pixels(pixels_CHW, spec, rng)}

    def _audio(self, id_: str, arrays: Arrays, span: Span) -> Arrays:
        assert self._inputs.audio is not None
        rng = self._rng(id_, f"audio {span.index}")  # the same for all windows of a file
        noise = np.random.default_rng(self._rng(id_, f"audio {span.index} {span.start}").getrandbits(64))
        changed_T = augment_waveform(arrays["waveform"], self._inputs.audio.rate, self._spec.audio, rng, noise)
        return {**arrays, "waveform": changed_T}

    def _rng(self, id_: str, what: str) -> Random:
        return Random(f"{self._seed} {self._epoch} {what} {id_}")


def _token_stops(item: Item, decoder: "Decoder") -> dict[int, list[int]]:
    """Return, for each text of an item, where its tokens end."""
    stops: dict[int, list[int]] = {}
    for index, places_T2 in decoder.token_places(item):
        stops.setdefault(index, []).extend(stop for stop in places_T2[:, 1].tolist() if stop)
    return stops
