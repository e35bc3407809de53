"""Items: one piece of content each, with its texts, images, audio, known targets and columns.

Example:
    >>> reply = Item("7", ("who wants some?", "me!"), roles={"text": ("context", "body")})
    >>> reply.role("text", 0)
    'context'
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal

from vigil_data.errors import UserError

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

CONTENT_KEYS: Mapping[Modality, str] = {"text": "text", "image": "data", "audio": "data"}
"""Key of the content of a text, image or audio file that is given as an object, as opposed to its path in a manifest."""

MAX_SECONDS = 1_000_000.0
"""Latest time within an item, 11 days: float32 still resolves a tenth of a second there."""

Time = tuple[float, float]
"""Start and end of a text within its item's recording, in seconds."""

TIMED: tuple[Modality, ...] = ("text", "audio")
"""Modalities whose segments may have a time: texts are given one, and a window of audio has its own."""

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

    Raises:
        UserError: if roles or times are not one for each text, image or audio file, or are invalid.
    """

    id: str
    text: tuple[str, ...] = ()
    image: tuple[bytes, ...] = ()
    audio: tuple[bytes, ...] = ()
    targets: Mapping[str, float | None] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    roles: Mapping[Modality, tuple[Role, ...]] = field(default_factory=dict)
    times: tuple[Time | None, ...] = ()

    def __post_init__(self) -> None:
        if not self.roles and not self.times:
            return
        for name, modality, given in (*(("roles", m, of) for m, of in self.roles.items()), ("times", "text", self.times)):
            if modality not in MODALITIES:
                raise UserError(f"item {self.id}: roles of {modality!r}; the modalities are {', '.join(MODALITIES)}")
            if given and len(given) != (number := len(getattr(self, modality))):
                raise UserError(f"item {self.id}: {modality} has {len(given)} {name}, but {number} entries")
            for index, value in enumerate(given):
                if problem := _problem(value, None) if name == "roles" else _problem(BODY, value):
                    raise UserError(f"item {self.id}: {modality}[{index}]: {problem}")

    def role(self, modality: Modality, index: int) -> Role:
        """Return the role of a text, image or audio file."""
        roles = self.roles.get(modality)
        return roles[index] if roles else BODY

    def time(self, modality: Modality, index: int) -> Time | None:
        """Return the start and end of a text in seconds, if it has a time; images and audio files have none."""
        return self.times[index] if modality == "text" and self.times else None

    def with_texts(self, texts: Sequence[str], role: Role, times: Sequence[Time] = (), *, first: bool = False) -> "Item":
        """Return the item with more texts.

        Args:
            texts: the texts.
            role: their role.
            times: start and end of each; empty if they have none.
            first: put them before the item's own texts, not after them.
        """
        if not texts:
            return self
        roles, times_of_own = self.roles.get("text") or (BODY,) * len(self.text), self.times or (None,) * len(self.text)
        more = (role,) * len(texts), tuple(times) or (None,) * len(texts)
        if first:
            text, all_roles, all_times = (*texts, *self.text), (*more[0], *roles), (*more[1], *times_of_own)
        else:
            text, all_roles, all_times = (*self.text, *texts), (*roles, *more[0]), (*times_of_own, *more[1])
        return replace(self, text=text, roles={**self.roles, "text": all_roles}, times=all_times if any(all_times) else ())


def read_segments(
    entries: Sequence[Any], modality: Modality, content: str
) -> tuple[list[Any], tuple[Role, ...], tuple[Time | None, ...]]:
    """Read texts, images or audio files, each alone or as an object such as ``{"role": "title", "text": "…"}``.

    Args:
        entries: contents, or objects with the content under its key and optional ``role``; a text may have ``start`` and ``end``
            in seconds.
        modality: their modality.
        content: key of the content of an object.

    Returns:
        The contents, unchecked; their roles, empty if no entry is an object; their times, empty if none has one.

    Raises:
        ValueError: for keys that are missing or unknown, and roles and times that are invalid; the message is the place and the
            reason: ``[2]: text is missing``.
    """
    if not any(isinstance(entry, Mapping) for entry in entries):
        return list(entries), (), ()
    keys = ("role", content, "start", "end") if modality == "text" else ("role", content)
    contents, roles, times = [], [], []
    for index, entry in enumerate(entries):
        value = entry if isinstance(entry, Mapping) else {content: entry}
        if not set(value) <= set(keys):
            raise ValueError(f"[{index}]: unknown key; the keys are {', '.join(keys)}")
        if content not in value:
            raise ValueError(f"[{index}]: {content} is missing")
        role: Any = value.get("role", BODY)
        time: Any = (value.get("start"), value.get("end")) if {"start", "end"} & set(value) else None
        if problem := _problem(role, time):
            raise ValueError(f"[{index}]: {problem}")
        contents.append(value[content])
        roles.append(role)
        times.append(time and (float(time[0]), float(time[1])))
    return contents, tuple(roles), tuple(times) if any(times) else ()


def _problem(role: object, time: object) -> str | None:
    """Return why a role or a time is invalid; ``None`` if both are valid."""
    if role not in ROLES:
        return f"role must be one of {', '.join(ROLES)}"
    if time is None:
        return None
    if not (isinstance(time, tuple) and len(time) == 2 and all(map(_is_seconds, time))):
        return f"start and end must be seconds from 0 to {MAX_SECONDS:,.0f}"
    return "start is after end" if time[0] > time[1] else None


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_SECONDS


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


def hash_place(text: str) -> float:
    """Return a place in [0, 1) by the hash of a text: that of an id chooses items at random, and always the same ones."""
    return int.from_bytes(sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
