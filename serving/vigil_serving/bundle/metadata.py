"""Content of bundle.json and inputs.json as plain dataclasses, which the runtime reads without pydantic.

``python -m vigil_serving.bundle.json_schema`` writes their JSON Schema.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vigil_data.items import Modality, Role
from vigil_data.prompts.clauses import Clause
from vigil_data.prompts.pieces import PromptPieces

FORMAT: Literal[6] = 6
"""Version of the bundle's layout; a bundle of another version is refused."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Input or output of a graph.

    Attributes:
        dtype: numpy's name of the element type.
        shape: length of each axis; a named axis may have any length.
    """

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """One exported file that computes outputs from inputs.

    Attributes:
        file: path within the bundle.
        inputs: inputs in the order in which the file takes them.
        outputs: outputs in the order in which the file returns them.
        codes: integer input that stands for text (a column such as ``market``, or the roles of segments) to the values; a value's
            code is its place among them, and -1 is any other value of a column.
    """

    file: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    codes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest allowed deviation of a backend from the trained model.

    Attributes:
        difference: of a raw probability.
        flips: share of the decisions on real items; 0 forbids any flip on any item.
        ap_loss: of any label's average precision on real items; ``None`` where it is only reported.
        batch_difference: of a raw probability of the same item in another batch, where no decision may differ.
    """

    difference: float
    flips: float = 0.0
    ap_loss: float | None = None
    batch_difference: float = 1e-4


@dataclass(frozen=True, slots=True)
class BatchInvariance:
    """Results of one backend on the same items in other batches: each alone, and shuffled in batches of several sizes.

    Attributes:
        batches: number of other batches.
        items: number of items that they hold.
        max_difference: largest difference of a raw probability between an item's first batch and another one.
        flips: decisions that differ.
        on_threshold: decisions that differ within 1e-6 of the threshold; not counted as flips.
        action_flips: items whose action under the policy differs.
    """

    batches: int
    items: int
    max_difference: float
    flips: int
    on_threshold: int
    action_flips: int


@dataclass(frozen=True, slots=True)
class Parity:
    """Agreement of one backend with the expected outputs over all compared batches.

    Attributes:
        backend: what ran the model, such as ``ONNX, single graph``, ``TorchScript`` or ``runtime, from bytes``.
        variant: precision of the encoders: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        cases: number of batches.
        items: number of items.
        decisions: items times labels.
        max_difference: largest difference of a raw probability, or of a calibrated one where the backend calibrates.
        flips: decisions that differ.
        on_threshold: decisions that differ where the expected probability is within 1e-6 of the threshold; not counted as flips.
        action_flips: items on which the policy's action differs.
        real_items: items from the run's validation split.
        real_flips: flips on real items.
        ap_change: label to the change of its average precision on the real items; ``None`` where too few targets are known.
        tolerance: allowed deviation.
        invariance: agreement of the backend with itself in other batches; ``None`` if it was not measured.
    """

    backend: str
    variant: str
    cases: int
    items: int
    decisions: int
    max_difference: float
    flips: int
    on_threshold: int
    action_flips: int
    real_items: int
    real_flips: int
    ap_change: Mapping[str, float | None]
    tolerance: Tolerance
    invariance: BatchInvariance | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One quantization of one encoder, measured with all other encoders in float32.

    Attributes:
        modality: modality of the encoder.
        name: quantization method; ``fp32`` is the encoder as trained.
        chosen: whether the variant ``int8`` uses it.
        milliseconds: median time of one run on calibration data, on the exporting machine; ``None`` if it was not timed.
        bytes: size of the file, with that of its weights if they are in a file of their own.
        parity: agreement with the float32 graphs on the real items that have the modality; ``None`` if it was not measured.
        failed: why it could not be chosen (out of tolerance, or not made); ``None`` if it could.
    """

    modality: str
    name: str
    chosen: bool
    milliseconds: float | None
    bytes: int
    parity: Parity | None
    failed: str | None


@dataclass(frozen=True, slots=True)
class Licence:
    """Licence of weights or of a tokenizer.

    Attributes:
        name: SPDX name, or the name that the source states; ``not stated`` if there is none.
        origin: the weights, and where the licence was read.
    """

    name: str
    origin: str


@dataclass(frozen=True, slots=True)
class BundleMetadata:
    """Content of bundle.json.

    Attributes:
        format: version of the layout.
        name: name of the model.
        created_at: time of the export, ISO 8601, UTC.
        modalities: modalities that the model takes, in the order of the graphs' inputs.
        labels: labels in the order of every ``[.., L]`` axis.
        graphs: name to file and tensors: the encoders, ``fusion``, ``decisions``, and the other exported formats.
        variants: name (``fp32`` always) to the graph of each modality's encoder.
        versions: versions of the libraries that exported, decoded and compared.
        parity: agreement of each backend with the trained model.
        candidates: quantizations that were tried for the variant ``int8``.
        left_out: requested format to the reason why the bundle lacks it.
        licences: ``text``, ``image``, ``audio`` (the encoders' weights) and ``tokenizer`` to the licence.
        lineage: run, dataset and its version, git state, as far as the exporter knew them.
        spans: the K labels whose characters the output ``spans`` of the ONNX graph of text marks, in the order of its last axis;
            TorchScript, ``torch.export`` and the single graph have no such output.
    """

    format: Literal[6]
    name: str
    created_at: str
    modalities: tuple[Modality, ...]
    labels: tuple[str, ...]
    graphs: Mapping[str, Graph]
    variants: Mapping[str, Mapping[str, str]]
    versions: Mapping[str, str]
    parity: tuple[Parity, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    licences: Mapping[str, Licence] = field(default_factory=dict)
    lineage: Mapping[str, Any] = field(default_factory=dict)
    spans: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TextNormalizationSettings:
    """How text is normalized before tokenization; see :class:`vigil_data.normalization.normalizer.Normalizer`."""

    unicode: Literal["nfkc", "none"]
    replacements: Mapping[str, str]
    separated: Literal["join", "keep"] = "keep"
    leetspeak: Literal["fold", "keep"] = "keep"


@dataclass(frozen=True, slots=True)
class TextInputSettings:
    """How text is split into passages; see :class:`vigil_data.specs.TextInput`. ``tokenizer`` is a path."""

    tokenizer: str
    max_tokens: int
    overlap: int
    max_passages: int
    special_tokens: bool = True
    roles: tuple[Role, ...] | None = None
    normalize: TextNormalizationSettings | None = None


@dataclass(frozen=True, slots=True)
class ImageInputSettings:
    """How images are decoded; see :class:`vigil_data.specs.ImageInput`."""

    size: int
    fit: Literal["crop", "pad", "squash"]
    background: int
    max_images: int
    max_pixels: int


@dataclass(frozen=True, slots=True)
class AudioInputSettings:
    """How audio is cut into windows; see :class:`vigil_data.specs.AudioInput`."""

    rate: int
    window: float
    hop: float | None
    max_windows: int


@dataclass(frozen=True, slots=True)
class InputSettings:
    """Content of inputs.json: ``null`` for a modality that the model does not take."""

    text: TextInputSettings | None = None
    image: ImageInputSettings | None = None
    audio: AudioInputSettings | None = None


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """Content of prompt.json: how a guard asks; only a guard's bundle has it.

    Attributes:
        pieces: constant pieces of the prompt as token ids.
        clauses: the policy text of each label, in the order of every ``[.., L]`` axis.
    """

    pieces: PromptPieces
    clauses: tuple[Clause, ...]
