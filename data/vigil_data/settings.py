"""Protocols of the decoders' settings, which a recipe (pydantic) and a bundle (plain dataclasses) both satisfy.

:class:`vigil_data.specs.Inputs` describes each setting.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from vigil_data.items import Role
    from vigil_data.source_specs import Source

MAX_PIXELS = 89_478_485
"""Pixels of an image above which it is refused unless a recipe says otherwise: the number at which Pillow warns of a bomb."""


class NormalizationSettings(Protocol):
    """Arguments of :class:`vigil_data.normalization.normalizer.Normalizer`."""

    @property
    def unicode(self) -> Literal["nfkc", "none"]: ...  # noqa: D102
    @property
    def replacements(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def separated(self) -> Literal["join", "keep"]: ...  # noqa: D102
    @property
    def leetspeak(self) -> Literal["fold", "keep"]: ...  # noqa: D102


class TextSettings(Protocol):
    """See :class:`vigil_data.specs.TextInput`; a string as tokenizer is the path of its tokenizer.json."""

    @property
    def tokenizer(self) -> "Source | str": ...  # noqa: D102
    @property
    def max_tokens(self) -> int: ...  # noqa: D102
    @property
    def overlap(self) -> int: ...  # noqa: D102
    @property
    def max_passages(self) -> int: ...  # noqa: D102
    @property
    def special_tokens(self) -> bool: ...  # noqa: D102
    @property
    def roles(self) -> "tuple[Role, ...] | None": ...  # noqa: D102
    @property
    def normalize(self) -> NormalizationSettings | None: ...  # noqa: D102


class ImageSettings(Protocol):
    """See :class:`vigil_data.specs.ImageInput`."""

    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def fit(self) -> Literal["crop", "pad", "squash"]: ...  # noqa: D102
    @property
    def background(self) -> int: ...  # noqa: D102
    @property
    def max_images(self) -> int: ...  # noqa: D102
    @property
    def max_pixels(self) -> int: ...  # noqa: D102


class AudioSettings(Protocol):
    """See :class:`vigil_data.specs.AudioInput`."""

    @property
    def rate(self) -> int: ...  # noqa: D102
    @property
    def window(self) -> float: ...  # noqa: D102
    @property
    def hop(self) -> float | None: ...  # noqa: D102
    @property
    def max_windows(self) -> int: ...  # noqa: D102


class Settings(Protocol):
    """See :class:`vigil_data.specs.Inputs`; ``None`` for a modality that the model lacks."""

    @property
    def text(self) -> TextSettings | None: ...  # noqa: D102
    @property
    def image(self) -> ImageSettings | None: ...  # noqa: D102
    @property
    def audio(self) -> AudioSettings | None: ...  # noqa: D102


def window_samples(audio: AudioSettings) -> int:
    """Return the number of samples in one window."""
    return round(audio.window * audio.rate)


def hop_samples(audio: AudioSettings) -> int:
    """Return the number of samples from one window's start to the next."""
    return round((audio.hop or audio.window) * audio.rate)
