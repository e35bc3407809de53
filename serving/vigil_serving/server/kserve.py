"""Open Inference Protocol (KServe V2) over HTTP: tensors as JSON or with the binary tensor data extension.

The bundle is a model with one input, ``item`` BYTES ``[N]``, each element an item as JSON; and three outputs: ``probabilities``
FP32 ``[N, L]`` in the order of the labels (NaN, in JSON null, for an item that cannot be decoded), ``action`` BYTES ``[N]``
(empty without a policy), and ``decision`` BYTES ``[N]``, each element a decision as JSON.

Source: https://github.com/kserve/open-inference-protocol, and Triton's extension_binary_data.md.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vigil_data.items import Item
from vigil_serving.protocol.errors import RequestError, invalid, malformed, too_large
from vigil_serving.protocol.item_json import item_from_json
from vigil_serving.protocol.strict_json import loads
from vigil_serving.protocol.tensors import INPUT, OUTPUTS, output_tensors
from vigil_serving.server.api_types import MAX_REQUEST_ID_CHARACTERS, ModelMetadata, ModelParameters, TensorMetadata
from vigil_serving.server.batching import ScoringResult
from vigil_serving.server.model_manager import LoadedBundle
from vigil_serving.server.request_body import check_limits
from vigil_serving.server.settings import RequestLimits

EXTENSIONS = ("binary_tensor_data",)
PLATFORM = "vigil_bundle"


class InferenceRequest(NamedTuple):
    """A parsed inference request.

    Attributes:
        id: the client's id of the request, which the response repeats.
        items: elements of the input.
        outputs: name of each requested output to whether it is sent as binary data.
    """

    id: str | None
    items: list[Item]
    outputs: Mapping[str, bool]


def model_metadata(loaded: LoadedBundle) -> ModelMetadata:
    """Return the model metadata of a bundle."""
    labels = loaded.scorer.bundle.metadata.labels
    shapes = {"probabilities": [-1, len(labels)], "action": [-1], "decision": [-1]}
    return ModelMetadata(
        name=loaded.name,
        versions=[loaded.version],
        platform=PLATFORM,
        inputs=[TensorMetadata(INPUT, "BYTES", [-1])],
        outputs=[TensorMetadata(name, datatype, shapes[name]) for name, datatype in OUTPUTS.items()],
        parameters=ModelParameters(labels, loaded.digest),
    )


def parse(body: bytes, header_length: str | None, limits: RequestLimits) -> InferenceRequest:
    """Read an inference request.

    Args:
        body: JSON, followed by binary data if ``header_length`` is given.
        header_length: the header Inference-Header-Content-Length.
        limits: limits of one request.

    Raises:
        RequestError: 400, 413 or 422.
    """
    length = len(body) if header_length is None else _length(header_length, len(body))
    request = loads(body[:length], "the request's JSON")
    if not isinstance(request, dict):
        raise invalid("the request must be a JSON object")
    name = request.get("id")
    if name is not None and (not isinstance(name, str) or len(name) > MAX_REQUEST_ID_CHARACTERS):
        raise invalid(f"id: must be a string of at most {MAX_REQUEST_ID_CHARACTERS} characters")
    elements = _elements(_only_input(request), body[length:], limits.items)
    items = [item_from_json(loads(element, f"item[{n}]"), f"item[{n}]") for n, element in enumerate(elements)]
    check_limits(items, limits)
    return InferenceRequest(name, items, _outputs(request))


def render(inference: InferenceRequest, result: ScoringResult) -> tuple[bytes, int | None]:
    """Render an inference response.

    Returns:
        Body, and the length of its JSON if binary data follow it.
    """
    tensors = output_tensors(result.decisions, result.loaded.scorer.bundle.metadata.labels)
    outputs, blobs = [], []
    for name, binary in inference.outputs.items():
        array = tensors[name]
        output: dict[str, Any] = {"name": name, "datatype": OUTPUTS[name], "shape": list(array.shape)}
        if binary:
            blobs.append(array.astype("<f4").tobytes() if OUTPUTS[name] == "FP32" else _pack(array.tolist()))
            output["parameters"] = {"binary_data_size": len(blobs[-1])}
        elif OUTPUTS[name] == "FP32":
            output["data"] = [None if np.isnan(value) else float(value) for value in array.ravel()]
        else:
            output["data"] = [element.decode() for element in array]
        outputs.append(output)
    response: dict[str, Any] = {"model_name": result.loaded.name, "model_version": result.loaded.version, "outputs": outputs}
    if inference.id is not None:
        response["id"] = inference.id
    head = json.dumps(response, ensure_ascii=False, allow_nan=False).encode()
    return head + b"".join(blobs), len(head) if blobs else None


def _length(header: str, body_bytes: int) -> int:
    if not (header.isascii() and header.isdigit() and len(header) < 19 and int(header) <= body_bytes):
        raise malformed("Inference-Header-Content-Length: must be a number of bytes within the body")
    return int(header)


def _only_input(request: Mapping[str, Any]) -> Mapping[str, Any]:
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise invalid("inputs: must be a list of one tensor")
    given: dict[str, Any] = inputs[0]
    if given.get("name") != INPUT or given.get("datatype") != "BYTES":
        raise invalid(f'inputs[0]: must have the name "{INPUT}" and the datatype "BYTES"')
    if not isinstance(given.get("parameters", {}), dict):
        raise invalid("inputs[0].parameters: must be an object")
    return given


def _elements(given: Mapping[str, Any], binary: bytes, max_items: int) -> list[bytes]:
    """Return the elements of the input, from the JSON or from the binary data."""
    shape, size = given.get("shape"), given.get("parameters", {}).get("binary_data_size")
    if not isinstance(shape, list) or len(shape) != 1 or type(shape[0]) is not int or shape[0] < 1:
        raise invalid("inputs[0].shape: must be [N], the number of items, at least 1")
    if shape[0] > max_items:
        raise too_large(f"inputs[0]: more than {max_items} items; send them in several requests")
    if size is not None:
        if "data" in given:
            raise invalid("inputs[0]: has both data and binary_data_size; send one of them")
        if type(size) is not int or size != len(binary):
            raise malformed("inputs[0].parameters.binary_data_size: must be the number of bytes after the JSON")
        elements = list(_unpack(binary, shape[0]))
    else:
        data = given.get("data")
        if binary or not isinstance(data, list) or not all(isinstance(element, str) for element in data):
            raise invalid("inputs[0].data: must be a list of strings, unless parameters.binary_data_size is given")
        elements = [element.encode() for element in data]
    if len(elements) != shape[0]:
        raise invalid("inputs[0]: the number of elements differs from its shape")
    return elements


def _outputs(request: Mapping[str, Any]) -> dict[str, bool]:
    """Return the requested outputs (default: all), and whether each is sent as binary data."""
    parameters, asked = request.get("parameters", {}), request.get("outputs")
    if not isinstance(parameters, dict):
        raise invalid("parameters: must be an object")
    binary = _flag(parameters, "binary_data_output", "parameters", default=False)
    if asked is None or asked == []:
        return dict.fromkeys(OUTPUTS, binary)
    if not isinstance(asked, list):
        raise invalid("outputs: must be a list")
    found: dict[str, bool] = {}
    for place, output in enumerate(asked):
        where = f"outputs[{place}]"
        if not isinstance(output, dict) or not isinstance(output.get("parameters", {}), dict):
            raise invalid(f"{where}: must be an object")
        name = output.get("name")
        if not isinstance(name, str) or name not in OUTPUTS or name in found:
            raise invalid(f"{where}.name: must be one of {', '.join(OUTPUTS)}, each at most once")
        if "classification" in output.get("parameters", {}):
            raise RequestError(422, f"{where}: the classification extension is not supported", "invalid")
        found[name] = _flag(output.get("parameters", {}), "binary_data", where, default=binary)
    return found


def _flag(parameters: Mapping[str, Any], name: str, where: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise invalid(f"{where}.{name}: must be true or false")
    return value


def _unpack(binary: bytes, max_elements: int) -> Iterator[bytes]:
    """Yield the elements of a BYTES tensor, each after its length as 4 bytes, little-endian."""
    place = count = 0
    while place < len(binary):
        if len(binary) - place < 4:
            raise malformed("inputs[0]: the binary data are incomplete")
        [length] = struct.unpack_from("<I", binary, place)
        place += 4
        count += 1
        if length > len(binary) - place or count > max_elements:
            raise malformed("inputs[0]: the number of elements in the binary data differs from the shape")
        yield binary[place : place + length]
        place += length


def _pack(elements: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)
