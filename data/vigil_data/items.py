"""Items: one piece of content each, with its texts, images, audio, known targets and columns.

Example:
    >>> reply = Item("7", ("who wants some?", "me!"), roles={"text": ("context", "body")})
    >>> reply.role("text", 0)
    'context'
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Modality = Literal["text", "image", "audio"]
MODALITIES: tuple[Modality, ...] = ("text", "image", "audio")
"""The modalities, in the order in which their segments are packed."""

Role = Literal["body", "title", "context", "transcript", "ocr", "cover"]
ROLES: tuple[Role, ...] = ("body", "title", "context", "transcript", "ocr", "cover")
"""What a text, image or sound is in its item: what its author posted (``body``), its title, what it replies to (``context``),
what is said in it, what is written in a picture, or its cover. In models and bundles a role is a number, its place here; new ones
are added at the end."""

BODY: Role = "body"
"""Role of whatever has none."""

MAX_SECONDS = 1_000_000.0
"""Latest time within an item, 11 days: float32 still resolves a tenth of a second there."""

Time = tuple[float, float]
"""Start and end of a text within its item's recording, in seconds."""

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
        roles: modality to the role of each of its texts, images or audio files; those of an absent modality are all ``body``.
        times: start and end of each text, ``None`` for a text without a time; empty if no text has one.
    """

    id: str
    text: tuple[str, ...] = ()
    image: tuple[bytes, ...] = ()
    audio: tuple[bytes, ...] = ()
    targets: Mapping[str, float | None] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    roles: Mapping[Modality, tuple[Role, ...]] = field(default_factory=dict)
    times: tuple[Time | None, ...] = ()

    def role(self, modality: Modality, index: int) -> Role:
        """Return the role of a text, image or audio file."""
        roles = self.roles.get(modality)
        return roles[index] if roles else BODY

    def time(self, modality: Modality, index: int) -> Time | None:
        """Return the start and end of a text in seconds, if it has a time; images and audio files have none."""
        return self.times[index] if modality == "text" and self.times else None


def check_role(role: object) -> Role:
    """Return a role.

    Raises:
        ValueError: if it is none of :data:`ROLES`; the message is the reason.
    """
    if role not in ROLES:
        raise ValueError(f"role is {_shown(role)}; the roles are {', '.join(ROLES)}")
    return role


def check_time(start: object, end: object) -> Time:
    """Return a text's start and end in seconds.

    Raises:
        ValueError: unless both are numbers and 0 ≤ start ≤ end ≤ :data:`MAX_SECONDS`; the message is the reason.
    """
    for name, value in (("start", start), ("end", end)):
        if value is None:
            raise ValueError(f"{name} is missing; a time has start and end, in seconds")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_SECONDS:
            raise ValueError(f"{name} is {_shown(value)}, not seconds from 0 to {MAX_SECONDS:,.0f}")
    assert isinstance(start, int | float)
    assert isinstance(end, int | float)
    if start > end:
        raise ValueError(f"start {start} is after end {end}")
    return float(start), float(end)


def read_segment(value: Mapping[str, Any], modality: Modality, content: str) -> tuple[Any, Role, Time | None]:
    """Read a text, image or audio file that is given as an object, such as ``{"role": "title", "text": "…"}``.

    Args:
        value: the content under its key, and optional ``role``; a text also has optional ``start`` and ``end``. Null is absent.
        modality: its modality.
        content: key of the content: ``text`` for a text.

    Returns:
        The content as it is, the role, and the time of a text that has one.

    Raises:
        ValueError: if keys are missing or unknown, and for roles and times that are invalid; the message is the reason.
    """
    keys = ("role", content, "start", "end") if modality == "text" else ("role", content)
    if unknown := [key for key in value if key not in keys]:
        raise ValueError(f"unknown key {_shown(unknown[0])}; the keys are {', '.join(keys)}")
    if value.get(content) is None:
        raise ValueError(f"{content} is missing")
    role = BODY if value.get("role") is None else check_role(value["role"])
    start, end = value.get("start"), value.get("end")
    return value[content], role, None if start is None and end is None else check_time(start, end)


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}…"


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
        raise ValueError(
            f"{name} is {_shown(value)}, not {'a probability in (0, 1]' if probability else 'a positive, finite number'}"
        )
    return number
