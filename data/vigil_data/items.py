"""Items: one piece of content each, with its texts, images, audio, known targets and columns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Modality = Literal["text", "image", "audio"]
MODALITIES: tuple[Modality, ...] = ("text", "image", "audio")
"""The modalities, in the order in which their segments are packed."""


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of content with encoded media.

    Attributes:
        id: identifier, unique within a dataset.
        text: texts, in order; each may become several passages.
        image: encoded images (JPEG, PNG, WebP, GIF, …).
        audio: encoded audio files (WAV, FLAC, Ogg, MP3).
        targets: label to a value in [0, 1]; ``None`` or absent is unknown, which is not negative.
        columns: other values to slice by (author, language, …).
    """

    id: str
    text: tuple[str, ...] = ()
    image: tuple[bytes, ...] = ()
    audio: tuple[bytes, ...] = ()
    targets: Mapping[str, float | None] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
