"""Recipe keys of augmentation."""

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from vigil_data.items import MODALITIES, Modality
from vigil_data.source_specs import Spec

Probability = Annotated[float, Field(gt=0, le=1)]

TextPerturbation = Literal["typos", "leetspeak", "spacing", "casing", "stretching", "homoglyphs", "emoji"]

MP3_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
"""Sample rates of MP3, in hertz."""

OVERLAY_TEXTS = (
    "NEW",
    "Follow for more",
    "wait for it",
    "today only",
    "part 2",
    "@someone",
    "swipe up",
    "no way",
    "Monday",
    "LIVE",
)
"""Default texts of ``data.augmentation.image.overlay``, which say nothing about any label."""


def _ascending(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError("the first value must not be above the second")
    return limits


def _unique(kinds: tuple[TextPerturbation, ...]) -> tuple[TextPerturbation, ...]:
    if not kinds:
        raise ValueError("name at least one kind")
    if repeated := [kind for kind, count in Counter(kinds).items() if count > 1]:
        raise ValueError(f"names {', '.join(repeated)} more than once")
    return kinds


Kinds = Annotated[tuple[TextPerturbation, ...], AfterValidator(_unique)]


class TextPerturbations(Spec):
    """Perturbations of texts, as in suites (see docs/suites.md); the strength of each is drawn too."""

    probability: Probability = Field(0.3, description="probability of perturbing a text by one of the kinds")
    kinds: Kinds = Field(get_args(TextPerturbation), description="equally probable perturbations")


class IdentitySwap(Spec):
    """Other identity terms in a text, with the same targets: counterfactual data augmentation (Garg et al. 2019, section 4.2)."""

    probability: Probability = Field(0.5, description="probability of swapping the terms of an item that has any")
    terms: Mapping[str, Mapping[str, tuple[str, ...]]] = Field(
        description="list of interchangeable terms to its groups, and each group to its terms, as `identities` of a suite"
    )

    @model_validator(mode="after")
    def _terms_are_of_one_group(self) -> "IdentitySwap":
        if not self.terms:
            raise ValueError("terms needs at least one list of terms")
        for name, groups in self.terms.items():
            if len(groups) < 2:
                raise ValueError(f"terms.{name} needs at least two groups to swap between")
            if empty := [group for group, words in groups.items() if not all(word.strip() for word in words) or not words]:
                raise ValueError(f"terms.{name}.{empty[0]} has no term, or an empty one")
        counts = Counter(word.lower() for groups in self.terms.values() for words in groups.values() for word in words)
        if repeated := [word for word, count in counts.items() if count > 1]:
            raise ValueError(f"terms names {', '.join(repeated)} more than once; a term belongs to one group of one list")
        return self


class TextAugmentation(Spec):
    """Augmentation of texts before normalization and tokenization."""

    perturb: TextPerturbations | None = Field(None, description="typing errors, evasion of filters, emphasis; null: none")
    identity_swap: IdentitySwap | None = Field(None, description="other identity terms; null: none")


class RandAugment(Spec):
    """RandAugment (Cubuk et al. 2020, section 3), by torchvision."""

    operations: int = Field(2, ge=1, le=14, description="operations on each image (N of the paper)")
    magnitude: int = Field(9, ge=0, le=30, description="strength of each operation (M of the paper)")


class Jpeg(Spec):
    """Recompression."""

    probability: Probability = Field(0.3, description="probability of recompressing an image")
    quality: Annotated[tuple[int, int], AfterValidator(_ascending)] = Field(
        (20, 90), description="range of JPEG qualities, 1 to 95"
    )

    @model_validator(mode="after")
    def _qualities_exist(self) -> "Jpeg":
        if not 1 <= self.quality[0] <= self.quality[1] <= 95:
            raise ValueError("quality must be between 1 and 95")
        return self


class Overlay(Spec):
    """Text drawn over an image."""

    probability: Probability = Field(0.3, description="probability of drawing a text over an image")
    texts: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        OVERLAY_TEXTS, description="texts to choose from; they must say nothing about the labels"
    )


class ImageAugmentation(Spec):
    """Augmentation of decoded images: RandAugment, then text, then recompression."""

    rand_augment: RandAugment | None = None
    overlay: Overlay | None = None
    jpeg: Jpeg | None = None


class Speed(Spec):
    """Other speed and pitch (Ko et al. 2015): windows are resampled, and cut or padded with silence at their end."""

    probability: Probability = Field(0.3, description="probability of changing the speed of a file")
    factor: Annotated[tuple[float, float], AfterValidator(_ascending)] = Field(
        (0.9, 1.1), description="range of speeds, 0.5 to 2"
    )

    @model_validator(mode="after")
    def _factors_are_moderate(self) -> "Speed":
        if not 0.5 <= self.factor[0] <= self.factor[1] <= 2:
            raise ValueError("factor must be between 0.5 and 2")
        return self


class Noise(Spec):
    """Noise of a room or a device: hiss, rumble, hum, or a chord."""

    probability: Probability = Field(0.3, description="probability of adding noise to a file")
    snr: Annotated[tuple[float, float], AfterValidator(_ascending)] = Field(
        (5.0, 30.0), description="range of signal-to-noise ratios in dB, of each window"
    )


class Equalizer(Spec):
    """Another frequency response, as of another microphone or loudspeaker (after FilterAugment, Nam et al. 2022)."""

    probability: Probability = Field(0.3, description="probability of changing the frequency response of a file")
    gain: float = Field(6.0, gt=0, le=24, description="largest gain or loss at a frequency, in dB")
    bands: int = Field(
        6, ge=2, le=16, description="number of frequencies with a gain of their own, evenly on a logarithmic scale from 80 Hz"
    )


class Reverberation(Spec):
    """Reverberation of a room: an exponentially decaying noise as impulse response (Polack's model, Moorer 1979)."""

    probability: Probability = Field(0.3, description="probability of adding reverberation to a file")
    decay: Annotated[tuple[float, float], AfterValidator(_ascending)] = Field(
        (0.1, 0.6), description="range of times in which the reverberation falls by 60 dB, in seconds, 0.02 to 5"
    )
    ratio: Annotated[tuple[float, float], AfterValidator(_ascending)] = Field(
        (0.0, 15.0), description="range of ratios of direct to reverberant energy in dB"
    )

    @model_validator(mode="after")
    def _decays_are_of_rooms(self) -> "Reverberation":
        if not 0.02 <= self.decay[0] <= self.decay[1] <= 5:
            raise ValueError("decay must be between 0.02 and 5 seconds")
        return self


class Codec(Spec):
    """Lossy compression and back."""

    probability: Probability = Field(0.3, description="probability of compressing a file")
    formats: Annotated[tuple[Literal["mp3", "ogg"], ...], Field(min_length=1)] = Field(
        ("mp3", "ogg"), description="equally probable formats: MP3, Ogg Vorbis"
    )


class AudioAugmentation(Spec):
    """Augmentation of audio windows: speed, reverberation, frequency response, noise, then compression."""

    speed: Speed | None = None
    reverberation: Reverberation | None = None
    equalizer: Equalizer | None = None
    noise: Noise | None = None
    codec: Codec | None = None


class Augmentation(Spec):
    """Random changes of training items that leave their targets as they are."""

    text: TextAugmentation = TextAugmentation()
    image: ImageAugmentation = ImageAugmentation()
    audio: AudioAugmentation = AudioAugmentation()

    @property
    def changes(self) -> tuple[Modality, ...]:
        """Modalities that are changed."""
        return tuple(m for m in MODALITIES if any(change is not None for _, change in getattr(self, m)))
