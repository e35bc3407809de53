"""Recipe keys of the model: encoders and their weights, fusion, heads and loss."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag, model_validator

from vigil_data.items import Modality
from vigil_data.prompts.specs import PolicyTraining, PromptSpec
from vigil_data.specs import Hub, Local, Package, Spec, default_kind


class Random(Spec):
    """Random initial weights, drawn from the recipe's seed."""

    kind: Literal["random"] = "random"


Share = Annotated[float, Field(gt=0, lt=1)]
Weights = Annotated[Hub | Local | Package | Random, Field(discriminator="kind")]


class Lora(Spec):
    """Low-rank adapters on linear layers; the encoder's own weights are not trained (Hu et al. 2022, section 4)."""

    rank: int = Field(8, ge=1, description="rank of the update of each layer's weights")
    alpha: int = Field(16, ge=1, description="scale of the update, divided by the rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of the adapters' inputs")
    targets: tuple[str, ...] = Field((), description="last part of the names of the layers (default: every linear layer)")


class Unfreezing(Spec):
    """Gradual unfreezing: layers are trained one after another, from the top (Howard and Ruder 2018, section 3.3)."""

    unit: Literal["epochs", "steps"] = Field("epochs", description="what start and every count: epochs or optimizer steps")
    start: int = Field(1, ge=0, description="epochs or steps before the top layer is trained")
    every: int = Field(1, ge=1, description="epochs or steps until the next lower layer is trained")
    layers: int = Field(1, ge=1, description="number of layers at a time")


class EncoderSpec(Spec):
    """Keys of every encoder."""

    weights: Weights = Field(description="source of the weights; required")
    frozen: bool | int = Field(
        False,
        description="true: freeze the encoder and keep it in evaluation mode; n: freeze its n lowest layers, embeddings first",
    )
    frozen_dtype: Literal["fp32", "bf16", "nf4"] = Field(
        "fp32",
        description="storage of the weights that are never trained; bf16: half the memory, rounded once; "
        "nf4: linear layers in 4 bits (QLoRA), the others in bf16, needs a GPU",
    )
    unfreeze: Unfreezing | None = Field(
        None, description="train the layers that are not frozen one after another, from the top; null: all from the beginning"
    )
    lora: Lora | None = Field(None, description="train low-rank adapters instead of the encoder's weights; null: none")
    lr_factor: float = Field(1.0, gt=0, description="the encoder's learning rate, relative to the optimizer's")
    layer_decay: float = Field(1.0, gt=0, le=1, description="learning rate of each layer relative to the layer above it")

    @model_validator(mode="after")
    def _adapters_replace_freezing(self) -> "EncoderSpec":
        if self.lora is not None and self.frozen is not False:
            raise ValueError("lora: the encoder's own weights are not trained anyway; leave frozen out")
        if self.unfreeze is not None and (self.lora is not None or self.frozen is True):
            other = "lora" if self.lora is not None else "frozen: true"
            raise ValueError(f"unfreeze: with {other}, no layer of the encoder is ever trained; leave one of them out")
        if self.frozen_dtype != "fp32" and self.lora is None and not self.frozen:
            raise ValueError("frozen_dtype: nothing is frozen; set frozen or lora, or leave this out")
        return self


class TransformersText(EncoderSpec):
    """Any text encoder of the transformers library (BERT, RoBERTa, DeBERTa, ModernBERT, E5, …)."""

    kind: Literal["transformers"] = "transformers"
    config: Mapping[str, Any] = Field(
        default_factory=dict,
        description="with random weights: the complete configuration with model_type; otherwise overrides of the stored one",
    )
    pool: Literal["mean", "first"] = Field("mean", description="mean over the passage's tokens, or its first token")


class DecoderText(EncoderSpec):
    """A causal language model of the transformers library (Llama, Qwen, Gemma, SmolLM, …) as a text encoder, or as a guard."""

    kind: Literal["decoder"] = "decoder"
    weights: Weights = Field(description="source of the weights: a folder with config.json, or a .gguf file; required")
    config: Mapping[str, Any] = Field(
        default_factory=dict,
        description="with random weights: the complete configuration with model_type; otherwise overrides of the stored one, "
        "such as num_hidden_layers: 6 for its first six layers",
    )
    pool: Literal["last", "mean", "attention"] = Field(
        "last", description="the passage's last token, the mean over its tokens, or their mean weighted by a learned query"
    )

    @model_validator(mode="after")
    def _query_is_trained(self) -> "DecoderText":
        if self.pool == "attention" and self.frozen is True:
            raise ValueError("pool: attention learns a query, which frozen: true would not train; take last or mean, or lora")
        return self


class TimmImage(EncoderSpec):
    """Any image model of the timm library."""

    kind: Literal["timm"] = "timm"
    name: str = Field(description="architecture name in timm, such as vit_tiny_patch16_224")
    match: Literal["name", "order"] = Field(
        "name", description="match the weight file's tensors by name, or by order if the file uses other names"
    )
    mean: tuple[float, float, float] | None = Field(None, description="mean of RGB in [0, 1] (default: the architecture's)")
    std: tuple[float, float, float] | None = Field(
        None, description="standard deviation of RGB in [0, 1] (default: the architecture's)"
    )
    pool: Literal["average", "none"] = Field(
        "average", description="average: one token per image; none: one token per cell of the last feature map"
    )
    options: Mapping[str, Any] = Field(default_factory=dict, description="additional arguments of timm.create_model")


class SpecAugment(Spec):
    """SpecAugment without time warping (Park et al. 2019, section 2): in training, bands and frames are set to the mean."""

    frequency_masks: int = Field(2, ge=0, description="masks over mel bands")
    frequency_width: float = Field(0.2, gt=0, le=1, description="maximum width of such a mask, relative to all bands")
    time_masks: int = Field(2, ge=0, description="masks over frames")
    time_width: float = Field(0.2, gt=0, le=1, description="maximum length of such a mask, relative to the window")

    @model_validator(mode="after")
    def _some_mask(self) -> "SpecAugment":
        if not self.frequency_masks and not self.time_masks:
            raise ValueError("masks nothing; leave spec_augment out")
        return self


class MelTimmAudio(EncoderSpec):
    """Any timm backbone with one input channel over a log-mel spectrogram that is part of the graph."""

    kind: Literal["mel_timm"] = "mel_timm"
    name: str = Field(description="architecture name in timm")
    match: Literal["name", "order"] = Field("name", description="match the weight file's tensors by name or by order")
    mels: int = Field(64, ge=8, description="number of mel bands")
    frame: float = Field(0.025, gt=0, description="length of an analysis window in seconds")
    step: float = Field(0.010, gt=0, description="time from one frame to the next in seconds")
    low: float = Field(20.0, ge=0, description="lowest frequency in hertz")
    high: float | None = Field(None, gt=0, description="highest frequency in hertz (default: half the sample rate)")
    normalize: Literal["window", "band"] = Field(
        "window",
        description="window: mean 0 and variance 1 in each window; band: and mean 0 in each mel band over the frames with sound, "
        "so that microphone and room count less; for speech",
    )
    pool: Literal["average", "none"] = Field(
        "average", description="average: one token per window; none: one token per cell of the last feature map"
    )
    spec_augment: SpecAugment | None = Field(None, description="masks over the spectrogram in training; null: none")
    options: Mapping[str, Any] = Field(default_factory=dict, description="additional arguments of timm.create_model")


class TransformersAudio(EncoderSpec):
    """An audio encoder of the transformers library: AST, wav2vec 2.0, HuBERT, WavLM, CLAP, or Whisper's encoder."""

    kind: Literal["transformers"] = "transformers"
    config: Mapping[str, Any] = Field(default_factory=dict, description="see the text encoder's config")


class SpeechEmbeddingAudio(EncoderSpec):
    """Google's speech embedding (Lin et al. 2020): a convolutional network of 0.33 M weights, pretrained on spoken words."""

    kind: Literal["speech_embedding"] = "speech_embedding"
    weights: Weights = Field(description="source of the weights: the ONNX graph of the network; required")
    pool: Literal["average", "none"] = Field(
        "average", description="average: one token per window; none: one token every 0.08 s, of the 0.78 s around it"
    )


TextEncoderSpec = Annotated[
    Annotated[TransformersText, Tag("transformers")] | Annotated[DecoderText, Tag("decoder")], default_kind("transformers")
]
ImageEncoderSpec = TimmImage
AudioEncoderSpec = Annotated[MelTimmAudio | TransformersAudio | SpeechEmbeddingAudio, Field(discriminator="kind")]


class Encoders(Spec):
    """One encoder for each modality of the recipe's inputs."""

    text: TextEncoderSpec | None = None
    image: ImageEncoderSpec | None = None
    audio: AudioEncoderSpec | None = None


class MeanFusion(Spec):
    """Mean of an item's segments."""

    kind: Literal["mean"] = "mean"


class GatedFusion(Spec):
    """Gated attention over an item's segments for each label (Ilse, Tomczak and Welling 2018, section 2.4, equation 9)."""

    kind: Literal["gated"] = "gated"
    hidden: int = Field(128, ge=1, description="width of the gate")


class TransformerFusion(Spec):
    """Self-attention over an item's segments, then a query for each label.

    After Query2Label (Liu et al. 2021) and ML-Decoder (Ridnik et al. 2021).
    """

    kind: Literal["transformer"] = "transformer"
    layers: int = Field(2, ge=0, description="self-attention layers over an item's segments")
    heads: int = Field(4, ge=1, description="attention heads; a divisor of the model's width")
    feedforward: float = Field(2.0, gt=0, description="width of the feed-forward layers, relative to the model's width")


class BottleneckFusion(Spec):
    """Attention within each modality and a few tokens through which modalities exchange (Nagrani et al. 2021, section 3.3)."""

    kind: Literal["bottleneck"] = "bottleneck"
    layers: int = Field(2, ge=1, description="layers of each modality")
    fusion_layer: int = Field(0, ge=0, description="first layer that exchanges; the layers below see one modality each")
    bottlenecks: int = Field(4, ge=1, description="bottleneck tokens of an item")
    heads: int = Field(4, ge=1, description="attention heads; a divisor of the model's width")
    feedforward: float = Field(2.0, gt=0, description="width of the feed-forward layers, relative to the model's width")

    @model_validator(mode="after")
    def _modalities_meet(self) -> "BottleneckFusion":
        if self.fusion_layer >= self.layers:
            raise ValueError(f"fusion_layer: is {self.fusion_layer}, but must be below layers, {self.layers}; the first is 0")
        return self


class LateFusion(Spec):
    """Weighted sum of the log odds of an auxiliary head for each modality (Kittler et al. 1998, equation 7; Heskes 1998)."""

    kind: Literal["late"] = "late"


TokenFusionSpec = MeanFusion | GatedFusion | TransformerFusion | BottleneckFusion
FusionSpec = Annotated[TokenFusionSpec | LateFusion, Field(discriminator="kind")]


class OgmGe(Spec):
    """On-the-fly gradient modulation with generalization enhancement (Peng et al. 2022, sections 3.2 and 3.3)."""

    alpha: float = Field(0.5, gt=0, description="strength with which gradients of a modality that is ahead are reduced")
    noise: bool = Field(True, description="add Gaussian noise of the gradient's size (GE)")


class AuxiliaryHeads(Spec):
    """Heads that predict from one modality alone; they are trained with the model, and only late fusion exports them."""

    weight: float = Field(0.5, gt=0, description="weight of their losses; that of the fused prediction is 1")
    ogm_ge: OgmGe | None = Field(None, description="reduce the gradients of modalities that are ahead; null: do not")


class TimePosition(Spec):
    """Sines and cosines of a segment's start and end, added to its tokens by a linear layer (Vaswani et al. 2017, sec. 3.5)."""

    periods: int = Field(16, ge=2, description="number of periods, spaced geometrically")
    shortest: float = Field(2.0, gt=0, description="shortest period in seconds: twice the smallest difference that matters")
    longest: float = Field(7200.0, gt=0, description="longest period in seconds: that of the longest recording")

    @model_validator(mode="after")
    def _longest_is_longer(self) -> "TimePosition":
        if self.longest <= self.shortest:
            raise ValueError("longest must be longer than shortest")
        return self


class SpanSpec(Spec):
    """Linear layer over the text encoder's tokens that marks the characters for which a label applies."""

    columns: Annotated[Mapping[str, str], Field(min_length=1)] = Field(
        description="label to the dataset's column of spans of an item's first body text, such as toxic_spans of that source"
    )
    weight: float = Field(1.0, gt=0, description="weight of the loss of spans; that of the labels is 1")


class ModelSpec(Spec):
    """Encoders, their common width, the fusion, and heads of single modalities."""

    kind: Literal["fusion"] = "fusion"
    width: int = Field(256, ge=8, description="width D to which every encoder's tokens are projected")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout in projections, fusion and heads; encoders have their own")
    encoders: Encoders
    fusion: FusionSpec = TransformerFusion()
    segment_roles: bool = Field(
        False, description="true: a learned embedding of each segment's role (title, context, …) is added to its tokens"
    )
    time_position: TimePosition | None = Field(
        None, description="an embedding of start and end is added to the tokens of windows of audio and timed texts; null: none"
    )
    auxiliary_heads: AuxiliaryHeads | None = Field(
        None, description="heads that predict from one modality alone in training; null: none; late fusion needs them"
    )
    hierarchy: bool = Field(False, description="true: no label is less probable than a label whose parent it is (C-HMCNN)")
    ordinal_heads: tuple[str, ...] = Field(
        (), description="heads whose labels are ranks, from the lowest to the highest; a rank implies those below (CORN)"
    )
    spans: SpanSpec | None = Field(None, description="mark the characters for which labels apply; null: do not")

    @property
    def uncached(self) -> tuple[Modality, ...]:
        """Modalities whose encoder runs in training even if it is frozen: spans are read from the states of all tokens."""
        return () if self.spans is None else ("text",)

    @model_validator(mode="after")
    def _spans_are_of_text(self) -> "ModelSpec":
        if self.spans is not None and self.encoders.text is None:
            raise ValueError("spans: the model has no text encoder, whose tokens they are read from; leave this out")
        return self


class GuardEncoders(Spec):
    """The language model of a guard, and encoders of pictures and sound, whose tokens stand in its prompts."""

    text: DecoderText = Field(description="the language model; required")
    image: ImageEncoderSpec | None = None
    audio: AudioEncoderSpec | None = None

    @model_validator(mode="after")
    def _answers_are_read_from_one_token(self) -> "GuardEncoders":
        if self.text.pool != "last":
            raise ValueError("text.pool: a guard reads its answer after the last token of the prompt; leave this out")
        return self


class GuardSpec(Spec):
    """A language model that reads a label's policy text and an item, and answers whether the item violates the policy."""

    kind: Literal["guard"] = "guard"
    uncached: ClassVar[tuple[Modality, ...]] = ("text",)
    encoders: GuardEncoders
    prompt: PromptSpec = PromptSpec()
    policies: PolicyTraining | None = Field(
        None, description="training on policies whose texts vary; null: each label's own text, and one clause in each question"
    )
    hierarchy: bool = Field(False, description="true: no label is less probable than a label whose parent it is (C-HMCNN)")
    spans: SpanSpec | None = Field(None, description="mark the characters for which labels apply; null: do not")


AnyModelSpec = Annotated[Annotated[ModelSpec, Tag("fusion")] | Annotated[GuardSpec, Tag("guard")], default_kind("fusion")]


class GroupDROSpec(Spec):
    """Group DRO: groups with a high loss weigh more (Sagawa et al. 2020, algorithm 1)."""

    column: str = Field(description="column of the dataset whose values are the groups; items without a value are a group too")
    step_size: float = Field(0.01, gt=0, description="eta of the paper: how fast weights follow the losses")


class LossOptions(Spec):
    """Weights and corrections that every kind of loss accepts."""

    label_weights: Mapping[str, float] = Field(default_factory=dict, description="label to its weight in the loss (default: 1)")
    positive_weights: Mapping[str, float] = Field(
        default_factory=dict, description="label to the weight of its positive targets (default: 1)"
    )
    class_balance: float | None = Field(
        None, gt=0, lt=1, description="beta of class-balanced weights of positives and negatives, such as 0.999; null: none"
    )
    logit_adjustment: float | None = Field(
        None, gt=0, description="factor of the log odds of a label's positives that the loss adds to its logits; null: none"
    )
    unlabeled: Mapping[str, Share] = Field(
        default_factory=dict,
        description="label whose unknown targets are unlabelled items, to the share of positives among them",
    )
    group_dro: GroupDROSpec | None = Field(None, description="weights of groups that grow with their loss; null: none")

    @model_validator(mode="after")
    def _groups_have_known_targets(self) -> "LossOptions":
        if self.group_dro is not None and self.unlabeled:
            raise ValueError("group_dro excludes unlabeled: the share of positives would differ between groups")
        return self


class BinaryCrossEntropy(LossOptions):
    """Binary cross-entropy on known targets, which may be soft."""

    kind: Literal["bce"] = "bce"


class FocalLoss(LossOptions):
    """Focal loss: easy targets weigh less (Lin et al. 2017, section 3); its alpha is ``positive_weights``."""

    kind: Literal["focal"] = "focal"
    gamma: float = Field(2.0, ge=0, description="focusing exponent; 0 is binary cross-entropy")


class AsymmetricLoss(LossOptions):
    """Asymmetric loss: easy negatives weigh less than easy positives (Ridnik et al. 2021, section 2)."""

    kind: Literal["asymmetric"] = "asymmetric"
    gamma_positive: float = Field(0.0, ge=0, description="focusing exponent of positives")
    gamma_negative: float = Field(4.0, ge=0, description="focusing exponent of negatives")
    margin: float = Field(0.05, ge=0, lt=1, description="negatives with a lower probability have no loss")


class GeneralizedCrossEntropy(LossOptions):
    """Generalized cross-entropy: wrong targets weigh less (Zhang and Sabuncu 2018, section 3.2)."""

    kind: Literal["gce"] = "gce"
    q: float = Field(0.7, gt=0, le=1, description="near 0 it is cross-entropy, at 1 the mean absolute error")


LossSpec = Annotated[BinaryCrossEntropy | FocalLoss | AsymmetricLoss | GeneralizedCrossEntropy, Field(discriminator="kind")]


class Classification(Spec):
    """Learn the targets of the taxonomy's labels."""

    kind: Literal["classification"] = "classification"


class Contrastive(Spec):
    """Pre-train encoders without labels: media of one item are near each other, those of two items apart.

    CLIP (Radford et al. 2021) or SigLIP (Zhai et al. 2023), between all modalities that an item has (Girdhar et al. 2023).
    """

    kind: Literal["contrastive"] = "contrastive"
    loss: Literal["siglip", "clip"] = Field(
        "siglip", description="siglip: a sigmoid for each pair of items; clip: a softmax over the items of a batch"
    )


ObjectiveSpec = Annotated[Classification | Contrastive, Field(discriminator="kind")]
