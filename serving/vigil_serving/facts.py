"""What a bundle says of itself in bundle.json and inputs.json, as plain dataclasses: the runtime reads them without pydantic.

``python -m vigil_serving.schema`` writes their JSON Schema.
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
class Parity:
    """How one exported form agreed with the trained model over all cases of the gate.

    Attributes:
        form: which: graph by graph, the single graph, TorchScript, or the runtime from bytes to decisions.
        cases: batches compared.
        items: items compared.
        decisions: items times labels.
        max_difference: the largest difference of a probability.
        flips: decisions that differ.
        on_threshold: decisions that differ where the trained model's probability is within 1e-6 of the threshold; no flips.
        action_flips: items that the policy treats differently.
    """

    form: str
    cases: int
    items: int
    decisions: int
    max_difference: float
    flips: int
    on_threshold: int
    action_flips: int = 0


@dataclass(frozen=True, slots=True)
class Signature:
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
