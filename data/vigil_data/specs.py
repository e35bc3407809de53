"""What a recipe can say about data: where files come from, how media are decoded, how rows become batches."""

from typing import Literal

from pydantic import Field, model_validator

from vigil_data.settings import hop_samples, window_samples
from vigil_data.source_specs import Hub as Hub
from vigil_data.source_specs import Local as Local
from vigil_data.source_specs import Package as Package
from vigil_data.source_specs import Source as Source
from vigil_data.source_specs import Spec as Spec


class TextInput(Spec):
    """How text becomes passages of token ids."""

    tokenizer: Source = Field(description="a tokenizer.json, or a folder that holds one")
    max_tokens: int = Field(128, ge=4, description="longest passage, special tokens included")
    overlap: int = Field(16, ge=0, description="tokens that neighbouring passages of a long text share")
    max_passages: int = Field(16, ge=1, description="passages taken from one item; the rest is cut and counted")

    @model_validator(mode="after")
    def _overlap_is_shorter(self) -> "TextInput":
        if self.overlap > self.max_tokens // 2:
            raise ValueError("overlap must be at most half of max_tokens")
        return self


class ImageInput(Spec):
    """How an encoded picture becomes uint8 RGB of the model's size."""

    size: int = Field(224, ge=16, le=2048, description="height and width in pixels")
    fit: Literal["crop", "pad", "squash"] = Field(
        "crop", description="crop: the short side fits and the centre stays; pad: the long side fits; squash: ignore the aspect"
    )
    background: int = Field(255, ge=0, le=255, description="grey level behind transparent pixels and in padding")
    max_images: int = Field(16, ge=1, description="images taken from one item; the rest is cut and counted")
    max_pixels: int = Field(
        89_478_485,
        ge=1,
        le=178_956_970,
        description="a picture of more pixels is refused (decompression bombs; Pillow's own limit)",
    )


class AudioInput(Spec):
    """How an encoded sound becomes float32 mono windows at the model's rate."""

    rate: int = Field(16_000, ge=1_000, le=192_000, description="samples a second")
    window: float = Field(5.0, gt=0, description="seconds of one window; a shorter sound is padded with silence at its end")
    hop: float | None = Field(
        None, gt=0, description="seconds from one window's start to the next; a window's length if not given"
    )
    max_windows: int = Field(120, ge=1, description="windows taken from one item; the rest is cut and counted")

    @model_validator(mode="after")
    def _hop_leaves_no_gap(self) -> "AudioInput":
        if self.hop is not None and self.hop > self.window:
            raise ValueError("hop must not be longer than window: seconds between windows would never be heard")
        return self

    @model_validator(mode="after")
    def _windows_hold_samples(self) -> "AudioInput":
        if self.samples < 1 or self.hop_samples < 1:
            raise ValueError("window and hop must be at least one sample long at this rate")
        return self

    @property
    def samples(self) -> int:
        """Samples in one window."""
        return window_samples(self)

    @property
    def hop_samples(self) -> int:
        """Samples from one window's start to the next."""
        return hop_samples(self)


class Inputs(Spec):
    """The modalities that a model takes and how each is decoded."""

    text: TextInput | None = None
    image: ImageInput | None = None
    audio: AudioInput | None = None

    @model_validator(mode="after")
    def _some_modality(self) -> "Inputs":
        if self.text is None and self.image is None and self.audio is None:
            raise ValueError("name at least one of text, image and audio")
        return self


class Cost(Spec):
    """What an item costs, in the unit of the batch budget; costs of its parts add up."""

    item: float = Field(0.0, ge=0, description="each item; alone and 1, batches are counted in items")
    character: float = Field(0.25, ge=0, description="each character of text (about a quarter of a token in English)")
    image: float = Field(64.0, ge=0, description="each image")
    second: float = Field(32.0, ge=0, description="each second of audio")


class BatchPlan(Spec):
    """How rows are gathered into batches: by cost, so that padding and stragglers vanish."""

    budget: float = Field(
        4096.0, gt=0, description="the most that the items of one batch may cost; a dearer item is a batch of its own"
    )
    max_items: int = Field(512, ge=1, description="the most items in one batch, however cheap they are")
    cost: Cost = Cost()
    pool: int = Field(50, ge=1, description="batches whose rows are sorted by cost together; 1 keeps random order")


class Data(Spec):
    """Which rows of which dataset, and how they are read."""

    dataset: str = Field(description="folder of the dataset, relative to where the command runs")
    version: int | None = Field(None, ge=1, description="version of the dataset; the newest if not given")
    train: str = Field("train", description="value of the column split for training")
    validation: str = Field("validation", description="value of the column split for validation, thresholds and early stopping")
    where: str | None = Field(None, description="a SQL condition that training rows must meet")
    batch: BatchPlan = BatchPlan()
    workers: int = Field(0, ge=0, description="processes that decode ahead; 0 decodes in the training process")
    worker_start: Literal["forkserver", "spawn"] = Field("forkserver", description="how workers start (Lance is not fork-safe)")
    quarantine_limit: float = Field(0.01, ge=0, le=1, description="share of rows that may prove undecodable before the run stops")
