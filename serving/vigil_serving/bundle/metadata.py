"""What a bundle says of itself in bundle.json and inputs.json, as plain dataclasses: the runtime reads them without pydantic.

``python -m vigil_serving.bundle.json_schema`` writes their JSON Schema.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vigil_data.items import Modality

FORMAT: Literal[3] = 3
"""Of the layout; a bundle of another one is refused."""


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """A graph's input or output.

    Attributes:
        dtype: numpy's name of the element type.
        shape: a named axis may have any length.
    """

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """One file that computes.

    Attributes:
        file: its path within the bundle.
        inputs: in the order in which the file takes them.
        outputs: in the order in which it gives them.
    """

    file: str
    inputs: Mapping[str, TensorFacts]
    outputs: Mapping[str, TensorFacts]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a form may differ by.

    Attributes:
        difference: of a probability of the graphs.
        flips: share of the decisions on real items; 0 forbids any flip on any item.
        ap_loss: of any label's average precision on real items; ``None`` where it is only reported.
    """

    difference: float
    flips: float = 0.0
    ap_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Parity:
    """How one exported form agreed with the trained model over all cases of the gate.

    Attributes:
        form: which: graph by graph, the single graph, TorchScript, or the runtime from bytes to decisions.
        variant: the precision of its encoders: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        cases: batches compared.
        items: items compared.
        decisions: items times labels.
        max_difference: the largest difference of a probability of the graphs.
        flips: decisions that differ.
        on_threshold: decisions that differ where the trained model's probability is within 1e-6 of the threshold; no flips.
        action_flips: items that the policy treats differently.
        real_items: of the items, those of the run's validation split.
        real_flips: of the flips, those on real items.
        ap_change: label to the change of its average precision on the real items; ``None`` where too few targets are known.
        tolerance: what was allowed.
    """

    form: str
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


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way of quantising one encoder, measured with all other encoders in float32.

    Attributes:
        modality: whose encoder.
        name: how; ``fp32`` is the encoder as it was trained.
        chosen: whether the variant ``int8`` has it.
        milliseconds: median time of one run on calibration data, on the exporting machine.
        max_difference: the largest change of a probability of the graphs on the real items.
        flips: decisions on the real items that differ.
        decisions: real items with this modality, times labels.
        ap_change: as in :class:`Parity`.
        bytes: of the file.
        failed: why it was not taken, where it was out of tolerance or could not be made; ``None`` if it could have been taken.
    """

    modality: str
    name: str
    chosen: bool
    milliseconds: float | None
    max_difference: float
    flips: int
    decisions: int
    ap_change: Mapping[str, float | None]
    bytes: int
    failed: str | None


@dataclass(frozen=True, slots=True)
class Licence:
    """Under which terms weights or a tokenizer came.

    Attributes:
        name: SPDX name, or what its source says; ``not stated`` if nothing does.
        origin: the weights, and where the licence was read.
    """

    name: str
    origin: str


@dataclass(frozen=True, slots=True)
class BundleMetadata:
    """The content of bundle.json.

    Attributes:
        format: of the layout.
        name: of the model.
        created_at: ISO 8601, UTC.
        modalities: those that the model takes, in the order of its graphs' inputs.
        labels: in the order of every ``[.., L]`` axis.
        graphs: name to file and tensors: the encoders, ``fusion``, and what else was exported.
        variants: name (``fp32`` always) to the graph of each modality's encoder.
        versions: of the libraries that exported, decoded and checked.
        parity: what the gate measured.
        candidates: what was tried for the variant ``int8``.
        left_out: form that was asked for, to why the bundle does not have it.
        licences: ``text``, ``image``, ``audio`` (the encoders' weights) and ``tokenizer``, where they came from elsewhere.
        lineage: run, dataset and its version, git state: whatever the exporter knew.
    """

    format: Literal[3]
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


@dataclass(frozen=True, slots=True)
class TextFacts:
    """How text becomes passages; see :class:`vigil_data.specs.TextInput`. ``tokenizer`` is a path."""

    tokenizer: str
    max_tokens: int
    overlap: int
    max_passages: int


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """How pictures are decoded; see :class:`vigil_data.specs.ImageInput`."""

    size: int
    fit: Literal["crop", "pad", "squash"]
    background: int
    max_images: int
    max_pixels: int


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """How sounds become windows; see :class:`vigil_data.specs.AudioInput`."""

    rate: int
    window: float
    hop: float | None
    max_windows: int


@dataclass(frozen=True, slots=True)
class InputFacts:
    """The content of inputs.json: ``null`` for a modality that the model does not take."""

    text: TextFacts | None = None
    image: ImageFacts | None = None
    audio: AudioFacts | None = None
