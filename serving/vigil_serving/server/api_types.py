"""Requests and responses of the HTTP interface, as dataclasses.

The handlers answer with instances of the response types, and :mod:`vigil_serving.server.openapi` generates the JSON Schemas of
all types. Requests are parsed by :mod:`vigil_serving.server.request_body` and :mod:`vigil_serving.server.kserve`, which report
the place of each mistake.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from vigil_data.items import BODY, MAX_SECONDS, Role
from vigil_serving.protocol.item_json import MAX_ID_CHARACTERS
from vigil_serving.runtime.decisions import Decision

BASE64 = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$"
"""RFC 4648, section 4, without stray bits in the last character."""
MAX_REQUEST_ID_CHARACTERS = 256

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the bundle's manifest")]
ItemId = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARACTERS)]
Base64 = Annotated[str, Field(pattern=BASE64, json_schema_extra={"contentEncoding": "base64"})]
Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS)]
Columns = Mapping[str, str | float | bool | None]
Shape = Annotated[Sequence[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=1)]
Output = Literal["probabilities", "action", "decision"]


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """Error of a request.

    Attributes:
        error: what is wrong, where, and how to fix it, in one line.
    """

    error: str


@dataclass(frozen=True, slots=True)
class StatusResponse:
    """State of the server."""

    status: Literal["live", "loading", "ready", "draining"]


@dataclass(frozen=True, slots=True)
class TextSegment:
    """A text with a role."""

    text: str
    role: Role = BODY


@dataclass(frozen=True, slots=True)
class TimedText:
    """A text at a time of the item's recording, in seconds; `end` is at least `start`."""

    text: str
    start: Seconds
    end: Seconds
    role: Role = BODY


@dataclass(frozen=True, slots=True)
class MediaSegment:
    """An image or audio file with a role.

    Attributes:
        data: the encoded file, in base64.
    """

    data: Base64
    role: Role = BODY


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """One item.

    Attributes:
        text: texts, each alone or with a role and a time.
        image: encoded images, in base64, each alone or with a role.
        audio: encoded audio files, in base64, each alone or with a role.
        columns: other facts about the item, such as market and language.
    """

    id: ItemId
    text: Sequence[str | TextSegment | TimedText] = ()
    image: Sequence[Base64 | MediaSegment] = ()
    audio: Sequence[Base64 | MediaSegment] = ()
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Items to decide."""

    items: Annotated[Sequence[ScoreItem], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class ScoreForm:
    """One item as a form: `text`, `image` and `audio` any number of times.

    Attributes:
        columns: a JSON object.
    """

    id: ItemId = "item"
    text: Sequence[str] = ()
    image: Sequence[bytes] = ()
    audio: Sequence[bytes] = ()
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoreResponse:
    """Decisions in the order of the items, and the bundle that made them.

    Attributes:
        policy: name and version.
    """

    bundle: str
    digest: Digest
    policy: str | None
    decisions: Sequence[Decision]


@dataclass(frozen=True, slots=True)
class ReloadRequest:
    """Bundle to load.

    Attributes:
        bundle: path of a folder on the server.
    """

    bundle: Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class ReloadResponse:
    """Bundle that was loaded.

    Attributes:
        before: digest of the bundle that it replaced.
    """

    bundle: str
    digest: Digest
    before: Digest


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """Policy of a bundle."""

    name: str
    version: int
    digest: str
    actions: Sequence[str]


@dataclass(frozen=True, slots=True)
class BundleInfo:
    """Bundle that decides now.

    Attributes:
        version: first twelve characters of the digest.
        shadow: digest of the bundle that is scored in the shadow.
        reload: state of the last reload.
        limits: limits of one request.
        policy_text: label to the SHA-256 of the policy text that a guard reads; empty for other models.
        not_evaluated: labels with a policy text that was not evaluated with this bundle.
        uncalibrated: labels with a policy text that has no calibration.
    """

    name: str
    digest: Digest
    version: str
    variant: str
    modalities: Sequence[str]
    labels: Sequence[str]
    thresholds: Mapping[str, float]
    policy: PolicyInfo | None
    shadow: str | None
    reload: Literal["idle", "loading", "refused"]
    limits: Mapping[str, float]
    policy_text: Mapping[str, str]
    not_evaluated: Sequence[str]
    uncalibrated: Sequence[str]


@dataclass(frozen=True, slots=True)
class ServerLive:
    """Whether the process answers."""

    live: bool


@dataclass(frozen=True, slots=True)
class ServerReady:
    """Whether items are decided."""

    ready: bool


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """Server metadata of the Open Inference Protocol."""

    name: str
    version: str
    extensions: Sequence[str]


@dataclass(frozen=True, slots=True)
class ModelReady:
    """Whether a model decides."""

    name: str
    ready: bool


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """Name, datatype and shape of a tensor; -1 is a variable size."""

    name: str
    datatype: Literal["BYTES", "FP32"]
    shape: Sequence[int]


@dataclass(frozen=True, slots=True)
class ModelParameters:
    """Labels and digest of a bundle."""

    labels: Sequence[str]
    digest: Digest


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """Model metadata of the Open Inference Protocol."""

    name: str
    versions: Sequence[str]
    platform: str
    inputs: Sequence[TensorMetadata]
    outputs: Sequence[TensorMetadata]
    parameters: ModelParameters


@dataclass(frozen=True, slots=True)
class InferInput:
    """The input tensor.

    Attributes:
        data: N items, each as JSON.
    """

    name: Literal["item"]
    datatype: Literal["BYTES"]
    shape: Shape
    data: Annotated[Sequence[str], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class OutputParameters:
    """Parameters of an output."""

    binary_data: bool = False


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output to return."""

    name: Output
    parameters: OutputParameters = field(default_factory=OutputParameters)


@dataclass(frozen=True, slots=True)
class InferParameters:
    """Parameters of an inference request."""

    binary_data_output: bool = False


@dataclass(frozen=True, slots=True)
class InferRequest:
    """Inference request of the Open Inference Protocol; without ``outputs`` all are returned."""

    inputs: Annotated[Sequence[InferInput], Field(min_length=1, max_length=1)]
    id: Annotated[str, Field(max_length=MAX_REQUEST_ID_CHARACTERS)] = ""
    outputs: Sequence[RequestedOutput] = ()
    parameters: InferParameters = field(default_factory=InferParameters)


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """An output tensor.

    Attributes:
        data: its elements, unless they follow the JSON as binary data.
        parameters: size of the binary data.
    """

    name: Output
    datatype: Literal["BYTES", "FP32"]
    shape: Sequence[int]
    data: Sequence[str | float | None] = ()
    parameters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InferResponse:
    """Inference response of the Open Inference Protocol."""

    model_name: str
    model_version: str
    outputs: Sequence[OutputTensor]
    id: str = ""


WITH_OPTIONAL_KEYS = (ScoreRequest, ScoreForm, ReloadRequest, InferRequest, InferResponse)
"""Types in which a key with a default may be absent."""
RESPONSES = (
    ErrorResponse,
    StatusResponse,
    ScoreResponse,
    ReloadResponse,
    BundleInfo,
    ServerLive,
    ServerReady,
    ServerMetadata,
    ModelReady,
    ModelMetadata,
)
EXTENSIBLE = {"InferParameters", "InferRequest", "OutputParameters", "RequestedOutput"}
"""Types with further keys that extensions of the protocol define."""
