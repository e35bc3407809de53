"""Items: one piece of content each, with its texts, images, audio, known targets and columns."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Modality = Literal["text", "image", "audio"]
MODALITIES: tuple[Modality, ...] = ("text", "image", "audio")
"""The modalities, in the order in which their segments are packed."""

INCLUSION_PROBABILITY, WEIGHT = "inclusion_probability", "weight"
SAMPLING_COLUMNS = (INCLUSION_PROBABILITY, WEIGHT)
"""Columns of items that are not a random sample: the probability with which an item was chosen to be labelled, and the number of
items of traffic that it represents. Predictions tables always copy them; see :mod:`vigil_evaluation.sampling_weights`."""


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


def sampling_value(name: str, value: Any) -> float:
    """Return a value of one of the :data:`SAMPLING_COLUMNS` as a number.

    Args:
        name: the column.
        value: a number, or its decimal digits as text.

    Raises:
        ValueError: if it is not a positive, finite number, or a probability above 1; the message is the reason.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    probability = name == INCLUSION_PROBABILITY
    if not (0 < number < math.inf and (number <= 1 or not probability)):
        shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}…"
        raise ValueError(f"{name} is {shown}, not {'a probability in (0, 1]' if probability else 'a positive, finite number'}")
    return number
