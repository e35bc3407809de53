"""Recipe keys of data: how media are decoded, and how rows become batches."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from vigil_data.augmentation.specs import Augmentation as Augmentation
from vigil_data.items import Role
from vigil_data.settings import MAX_PIXELS, hop_samples, window_samples
from vigil_data.source_specs import Hub as Hub
from vigil_data.source_specs import Local as Local
from vigil_data.source_specs import Package as Package
from vigil_data.source_specs import Source as Source
from vigil_data.source_specs import Spec as Spec
from vigil_data.source_specs import default_kind as default_kind


class TextNormalization(Spec):
    """Normalization of text before tokenization; see :class:`vigil_data.normalization.normalizer.Normalizer`."""

    unicode: Literal["nfkc", "none"] = Field(
        "nfkc", description="nfkc: one form for characters of equal meaning, such as ﬁ and fi"
    )
    emoji: Literal["names", "keep"] = Field("names", description="names: replace emoji by their English names, as words")
    homoglyphs: Literal["fold", "keep"] = Field(
        "keep", description="fold: Latin letters for the Cyrillic, Greek and other letters that look like them, in any word"
    )
    invisible: Literal["remove", "keep"] = Field("remove", description="remove: delete characters that show nothing")
    separated: Literal["join", "keep"] = Field(
        "keep", description="join: letters alone between single spaces, three or more, become a word"
    )
    leetspeak: Literal["fold", "keep"] = Field(
        "keep", description="fold: letters for the digits 0, 1, 3, 4, 5 and 7 in words that also have letters"
    )

    @model_validator(mode="after")
    def _some_effect(self) -> "TextNormalization":
        if self.unicode == "none" and self.separated == self.leetspeak == "keep" and not self.replacements:
            raise ValueError("changes nothing; leave normalize out")
        return self

    @property
    def replacements(self) -> Mapping[str, str]:
        """Text to what replaces it after NFKC."""
        from vigil_data.normalization.tables import replacement_table  # lazy: only a recipe that normalizes needs it

        return replacement_table(
            nfkc=self.unicode == "nfkc",
            emoji_names=self.emoji == "names",
            fold_homoglyphs=self.homoglyphs == "fold",
            remove_invisible=self.invisible == "remove",
        )


class TextInput(Spec):
    """Tokenization of text into passages."""

    tokenizer: Source = Field(description="a tokenizer.json, a folder with one, or a .gguf file")
    max_tokens: int = Field(128, ge=4, description="maximum length of a passage, including special tokens")
    overlap: int = Field(16, ge=0, description="tokens shared by adjacent passages of a long text")
    max_passages: int = Field(16, ge=1, description="maximum number of passages of an item; the rest is omitted and counted")
    special_tokens: bool = Field(
        True, description="whether each passage has the tokenizer's special tokens, such as [CLS] and [SEP]; false for a guard"
    )
    roles: tuple[Role, ...] | None = Field(
        None, min_length=1, description="roles of the texts that are read, such as [title, body]; null: all"
    )
    normalize: TextNormalization | None = Field(None, description="normalization before tokenization; null: none")

    @model_validator(mode="after")
    def _overlap_is_shorter(self) -> "TextInput":
        if self.overlap > self.max_tokens // 2:
            raise ValueError("overlap must be at most half of max_tokens")
        return self


class ImageInput(Spec):
    """Decoding of images into uint8 RGB of the model's size."""

    size: int = Field(224, ge=16, le=2048, description="height and width in pixels")
    fit: Literal["crop", "pad", "squash"] = Field(
        "crop",
        description="crop: fit the short side and keep the centre; pad: fit the long side; squash: ignore the aspect ratio",
    )
    background: int = Field(255, ge=0, le=255, description="grey level of transparent pixels and padding")
    max_images: int = Field(16, ge=1, description="maximum number of images of an item; the rest is omitted and counted")
    max_pixels: int = Field(
        MAX_PIXELS,
        ge=1,
        le=178_956_970,
        description="maximum number of pixels of an image; a larger one is refused (decompression bomb; Pillow's limit)",
    )


class AudioInput(Spec):
    """Decoding of audio into float32 mono windows at the model's sample rate."""

    rate: int = Field(16_000, ge=1_000, le=192_000, description="sample rate in hertz")
    window: float = Field(5.0, gt=0, description="length of a window in seconds; shorter audio is padded with silence at its end")
    hop: float | None = Field(
        None, gt=0, description="time from one window's start to the next in seconds (default: the window's length)"
    )
    max_windows: int = Field(120, ge=1, description="maximum number of windows of an item; the rest is omitted and counted")

    @model_validator(mode="after")
    def _hop_leaves_no_gap(self) -> "AudioInput":
        if self.hop is not None and self.hop > self.window:
            raise ValueError("hop must not be longer than window: audio between windows would be skipped")
        return self

    @model_validator(mode="after")
    def _windows_hold_samples(self) -> "AudioInput":
        if self.samples < 1 or self.hop_samples < 1:
            raise ValueError("window and hop must be at least one sample long at this rate")
        return self

    @property
    def samples(self) -> int:
        """Number of samples in one window."""
        return window_samples(self)

    @property
    def hop_samples(self) -> int:
        """Number of samples from one window's start to the next."""
        return hop_samples(self)


class Inputs(Spec):
    """The modalities of a model and how each is decoded."""

    text: TextInput | None = None
    image: ImageInput | None = None
    audio: AudioInput | None = None

    @model_validator(mode="after")
    def _some_modality(self) -> "Inputs":
        if self.text is None and self.image is None and self.audio is None:
            raise ValueError("name at least one of text, image and audio")
        return self


class Cost(Spec):
    """Cost of an item, in the unit of the batch budget: the sum of its parts. Media that the model does not read cost nothing."""

    item: float = Field(0.0, ge=0, description="cost of an item; 1 with all others 0 counts batches in items")
    character: float = Field(0.25, ge=0, description="cost of a character of text (about a quarter of a token in English)")
    token: float = Field(
        0.0, ge=0, description="cost of a token of text; texts are then tokenized once before training, and character should be 0"
    )
    image: float = Field(64.0, ge=0, description="cost of an image")
    second: float = Field(32.0, ge=0, description="cost of a second of audio")


class BatchPlan(Spec):
    """Batching of rows by cost, which minimizes padding and stragglers."""

    budget: float = Field(4096.0, gt=0, description="maximum total cost of a batch; an item over the budget gets its own batch")
    max_items: int = Field(512, ge=1, description="maximum number of items in a batch")
    cost: Cost = Cost()
    pool: int = Field(50, ge=1, description="batches whose rows are sorted by cost together; 1 keeps random order")


class Sampling(Spec):
    """How often training items are read, see :mod:`vigil_data.loading.sampling`; validation reads each item once."""

    by: str | None = Field(None, description="column whose values are mixed, such as source; null: none")
    temperature: float = Field(
        1.0,
        ge=1,
        description="a value with a share p of the items has a share of the epoch proportional to p ** (1 / temperature)",
    )
    weights: Mapping[str, float] = Field(
        default_factory=dict, description="value of the column to a further factor of its share; none for items without a value"
    )
    repeat_threshold: float | None = Field(
        None, gt=0, le=1, description="items with a label rarer than this share are read more often; null: no item is"
    )
    items: int | None = Field(None, ge=1, description="items read in an epoch; null: as many as there are training items")

    @model_validator(mode="after")
    def _some_effect(self) -> "Sampling":
        if self.by is None and (self.temperature != 1 or self.weights):
            raise ValueError("temperature and weights need by, the column whose values are mixed")
        if self.temperature == 1 and not self.weights and self.repeat_threshold is None and self.items is None:
            raise ValueError("changes nothing; give temperature, weights, repeat_threshold or items, or leave sampling out")
        if problems := [name for name, weight in self.weights.items() if not 0 < weight < math.inf]:
            raise ValueError(f"weights must be positive and finite, that of {problems[0]} is not")
        return self


class BlockShuffle(Spec):
    """Shuffling for network file systems and object stores: whole blocks of adjacent rows are read, each once in an epoch."""

    block: int = Field(256, ge=1, description="rows of a block, which are read together")
    window: int = Field(4, ge=1, description="blocks of a stream whose rows are mixed")
    streams: int = Field(
        4, ge=1, description="streams of a rank, whose batches take turns; a multiple of workers, so that no block is read twice"
    )

    @property
    def held_blocks(self) -> int:
        """Blocks that all workers of a rank hold in memory together: the windows that its next batches are from."""
        return 3 * self.window * self.streams


class Data(Spec):
    """The rows of a dataset to train on, and how they are read."""

    dataset: str = Field(description="folder of the dataset, relative to the working directory")
    version: int | None = Field(None, ge=1, description="version of the dataset (default: the newest)")
    train: str = Field("train", description="value of the column split for training")
    validation: str = Field("validation", description="value of the column split for validation, thresholds and early stopping")
    where: str | None = Field(None, description="SQL condition that selects training rows")
    batch: BatchPlan = BatchPlan()
    sampling: Sampling | None = Field(None, description="how often training items are read; null: each once in an epoch")
    shuffle: BlockShuffle | None = Field(None, description="read blocks of adjacent rows; null: any row may follow any other")
    augmentation: Augmentation | None = Field(None, description="random changes of training items; null: none")
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        0,
        description="number of decoding processes; 0 decodes in the training process; auto: as many as the training needs",
    )
    worker_start: Literal["forkserver", "spawn"] = Field(
        "forkserver", description="start method of the workers (Lance is not fork-safe)"
    )
    quarantine_limit: float = Field(0.01, ge=0, le=1, description="maximum share of undecodable rows; above it, the run stops")
