"""What a recipe can say about a model: encoders and their weights, fusion, heads and loss."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from vigil_data.specs import Hub, Local, Package, Spec


class Random(Spec):
    """Freshly initialised weights, from the recipe's seed."""

    kind: Literal["random"] = "random"


Weights = Annotated[Hub | Local | Package | Random, Field(discriminator="kind")]


class EncoderSpec(Spec):
    """What every encoder has."""

    weights: Weights = Field(description="where the weights come from; there is no default on purpose")
    frozen: bool | int = Field(
        False,
        description="true: the encoder is not trained and stays in evaluation mode; n: its n lowest layers are, embeddings first",
    )
    lr_factor: float = Field(1.0, gt=0, description="the encoder's learning rate, relative to the optimizer's")
    layer_decay: float = Field(1.0, gt=0, le=1, description="factor on the learning rate from each layer to the one below it")


class TransformersText(EncoderSpec):
    """Any text encoder of the transformers library (BERT, RoBERTa, DeBERTa, ModernBERT, E5, …)."""

    kind: Literal["transformers"] = "transformers"
    config: Mapping[str, Any] = Field(
        default_factory=dict,
        description="with random weights: the configuration, model_type included; else values that override the stored one",
    )
    pool: Literal["mean", "first"] = Field("mean", description="mean over the passage's tokens, or its first token")


class TimmImage(EncoderSpec):
    """Any image model of the timm library."""

    kind: Literal["timm"] = "timm"
    name: str = Field(description="timm's name of the architecture, such as vit_tiny_patch16_224")
    match: Literal["name", "order"] = Field(
        "name", description="how a weight file's tensors find the model's: by name, or by order where a file uses foreign names"
    )
    mean: tuple[float, float, float] | None = Field(
        None, description="mean of RGB in [0, 1]; the architecture's own if not given"
    )
    std: tuple[float, float, float] | None = Field(
        None, description="standard deviation of RGB in [0, 1]; the architecture's own if not given"
    )
    pool: Literal["average", "none"] = Field(
        "average", description="one token an image, or none: one token for each cell of the last feature map"
    )
    options: Mapping[str, Any] = Field(default_factory=dict, description="further arguments of timm.create_model")


class MelTimmAudio(EncoderSpec):
    """A log-mel spectrogram, in the graph, into any timm backbone of one input channel."""

    kind: Literal["mel_timm"] = "mel_timm"
    name: str = Field(description="timm's name of the architecture")
    match: Literal["name", "order"] = Field("name", description="how a weight file's tensors find the model's")
    mels: int = Field(64, ge=8, description="mel bands")
    frame: float = Field(0.025, gt=0, description="seconds of one analysis window")
    step: float = Field(0.010, gt=0, description="seconds from one frame to the next")
    low: float = Field(20.0, ge=0, description="lowest frequency in hertz")
    high: float | None = Field(None, gt=0, description="highest frequency in hertz; half the rate if not given")
    pool: Literal["average", "none"] = Field(
        "average", description="one token a window, or none: one token for each cell of the last feature map"
    )
    options: Mapping[str, Any] = Field(default_factory=dict, description="further arguments of timm.create_model")


class TransformersAudio(EncoderSpec):
    """An audio encoder of the transformers library: AST, wav2vec 2.0, HuBERT, WavLM, or Whisper's encoder."""

    kind: Literal["transformers"] = "transformers"
    config: Mapping[str, Any] = Field(default_factory=dict, description="see the text encoder's")


TextEncoderSpec = TransformersText
ImageEncoderSpec = TimmImage
AudioEncoderSpec = Annotated[MelTimmAudio | TransformersAudio, Field(discriminator="kind")]


class Encoders(Spec):
    """One encoder for each modality that the recipe's inputs name."""

    text: TextEncoderSpec | None = None
    image: ImageEncoderSpec | None = None
    audio: AudioEncoderSpec | None = None


class MeanFusion(Spec):
    """The mean of an item's segments; every segment has the same say."""

    kind: Literal["mean"] = "mean"


class GatedFusion(Spec):
    """Gated attention over an item's segments, for each label (Ilse, Tomczak and Welling 2018, section 2.4, equation 9)."""

    kind: Literal["gated"] = "gated"
    hidden: int = Field(128, ge=1, description="width of the gate")


class TransformerFusion(Spec):
    """Segments of an item attend to each other; then a query for each label attends to them.

    After Query2Label (Liu et al. 2021) and ML-Decoder (Ridnik et al. 2021).
    """

    kind: Literal["transformer"] = "transformer"
    layers: int = Field(2, ge=0, description="self-attention layers over an item's segments")
    heads: int = Field(4, ge=1)
    feedforward: float = Field(2.0, gt=0, description="width of the feed-forward layers, relative to the model's width")


FusionSpec = Annotated[MeanFusion | GatedFusion | TransformerFusion, Field(discriminator="kind")]


class ModelSpec(Spec):
    """Encoders, their common width, fusion, heads."""

    width: int = Field(256, ge=8, description="width D to which every encoder's tokens are projected")
    dropout: float = Field(0.1, ge=0, lt=1, description="in projections, fusion and heads; encoders keep their own")
    encoders: Encoders
    fusion: FusionSpec = TransformerFusion()


class BinaryCrossEntropy(Spec):
    """Binary cross-entropy on known targets, soft ones included."""

    kind: Literal["bce"] = "bce"
    label_weights: Mapping[str, float] = Field(default_factory=dict, description="weight of a label's cells; 1 if not named")
    positive_weights: Mapping[str, float] = Field(
        default_factory=dict, description="weight of a label's positive part; 1 if not named"
    )


LossSpec = BinaryCrossEntropy
