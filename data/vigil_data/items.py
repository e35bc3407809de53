"""An item is one piece of content: a bag of text passages, images and sounds, with the targets that are known of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Modality = Literal["text", "image", "audio"]
MODALITIES: tuple[Modality, ...] = ("text", "image", "audio")
"""The modalities in the order in which their segments are packed everywhere."""


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of content, not decoded yet.

    Attributes:
        id: unique within a dataset.
        text: the texts, in order; each may become several passages.
        image: encoded pictures (JPEG, PNG, WebP, GIF, …).
        audio: encoded sounds (WAV, FLAC, Ogg, MP3).
        targets: label to a value in [0, 1]; ``None`` or absent is unknown, which is not negative.
        columns: anything else that is known of the item and may be sliced by (author, language, …).
    """

    id: str
    text: tuple[str, ...] = ()
    image: tuple[bytes, ...] = ()
    audio: tuple[bytes, ...] = ()
    targets: Mapping[str, float | None] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
