"""What bundle.json says: the graphs and their tensors, the labels, the measured parity, and the origin."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from vigil_data.items import Modality
from vigil_data.specs import Spec


class TensorFacts(Spec):
    """Element type and shape of a graph's input or output; a named axis may have any length."""

    dtype: str = Field(description="numpy's name of the element type")
    shape: tuple[int | str, ...]


class Graph(Spec):
    """One file that computes; inputs and outputs in the order in which the file takes and gives them."""

    file: str = Field(description="path within the bundle")
    inputs: Mapping[str, TensorFacts]
    outputs: Mapping[str, TensorFacts]


class Parity(Spec):
    """How one exported form agreed with the trained model over all cases of the gate."""

    form: str = Field(
        description="which form: graph by graph, the single graph, TorchScript, or the runtime from bytes to decisions"
    )
    cases: int = Field(description="batches compared")
    items: int = Field(description="items compared")
    decisions: int = Field(description="items times labels")
    max_difference: float = Field(description="largest difference of a probability")
    flips: int = Field(description="decisions that differ; zero, or there would be no bundle")
    action_flips: int = Field(0, description="items that the policy treats differently; zero, or there would be no bundle")
    on_threshold: int = Field(
        description="decisions that differ where the trained model's probability is within 1e-6 of the threshold; no flips"
    )


class Signature(Spec):
    """The content of bundle.json."""

    format: Literal[2] = 2
    name: str
    created_at: str = Field(description="ISO 8601, UTC")
    modalities: tuple[Modality, ...]
    labels: tuple[str, ...] = Field(description="in the order of every [.., L] axis")
    graphs: Mapping[str, Graph] = Field(
        description="one for each modality, fusion, model (all in one) and torchscript (all in one)"
    )
    versions: Mapping[str, str] = Field(description="of the libraries that exported, decoded and checked")
    parity: tuple[Parity, ...]
    lineage: Mapping[str, Any] = Field(description="run, dataset and its version, git state: whatever the exporter knew")
