"""The Open Inference Protocol (KServe V2) over HTTP: tensors in and out, as JSON or with the binary tensor data extension.

The bundle is a model with one input, ``item`` BYTES ``[N]``, each element an item as JSON; and three outputs: ``probabilities``
FP32 ``[N, L]`` in the order of the labels (NaN, in JSON null, where an item cannot be decoded), ``action`` BYTES ``[N]`` (empty
without a policy), and ``decision`` BYTES ``[N]``, each element a decision as JSON.

Source: https://github.com/kserve/open-inference-protocol, and Triton's extension_binary_data.md.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.items import Item
from vigil_serving.protocol.errors import RequestError, invalid, malformed, too_large
from vigil_serving.protocol.strict_json import loads
from vigil_serving.server.batching import Answer
from vigil_serving.server.model_manager import LoadedBundle
from vigil_serving.server.request_parsing import check, item_from_json
from vigil_serving.server.settings import Limits

EXTENSIONS = ("binary_tensor_data",)
PLATFORM = "vigil_bundle"
INPUT = "item"
OUTPUTS = {"probabilities": "FP32", "action": "BYTES", "decision": "BYTES"}


class Inference(NamedTuple):
    """What a client asks for.

    Attributes:
        id: the client's name of the request, given back; ``None`` if it has none.
        items: the elements of ``item``.
        outputs: name of each output asked for to whether it goes as binary data.
    """

    id: str | None
    items: list[Item]
    outputs: Mapping[str, bool]


def metadata(loaded: LoadedBundle) -> dict[str, Any]:
    """What the protocol calls a model's metadata."""
    labels = list(loaded.scorer.bundle.signature.labels)
    shapes = {"probabilities": [-1, len(labels)], "action": [-1], "decision": [-1]}
    return {
        "name": loaded.name,
        "versions": [loaded.version],
        "platform": PLATFORM,
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": name, "datatype": kind, "shape": shapes[name]} for name, kind in OUTPUTS.items()],
        "parameters": {"labels": labels, "digest": loaded.digest},
    }


def parse(body: bytes, header_length: str | None, limits: Limits) -> Inference:
    """Read an inference request.

    Args:
        body: JSON, and after it binary data if ``header_length`` is given.
        header_length: the header Inference-Header-Content-Length.
        limits: what a request may hold.

    Raises:
        RequestError: 400, 413 or 422.
    """
    length = len(body) if header_length is None else _length(header_length, len(body))
    request = loads(body[:length], "the request's JSON")
    if not isinstance(request, dict):
        raise invalid("the request must be a JSON object")
    name = request.get("id")
    if name is not None and (not isinstance(name, str) or len(name) > 256):
        raise invalid("id: must be a string of at most 256 characters")
    elements = _elements(_only_input(request), body[length:], limits.items)
    items = [item_from_json(loads(element, f"item[{n}]"), f"item[{n}]") for n, element in enumerate(elements)]
    check(items, limits)
    return Inference(name, items, _outputs(request))


def render(inference: Inference, answer: Answer) -> tuple[bytes, int | None]:
    """Write an inference response.

    Returns:
        The body, and the length of its JSON if binary data follow it.
    """
    labels = answer.loaded.scorer.bundle.signature.labels
    arrays: dict[str, list[bytes] | NDArray[np.float32]] = {
        "probabilities": np.array(
            [[d.probabilities.get(label, np.nan) for label in labels] for d in answer.decisions], np.float32
        ).reshape(len(answer.decisions), len(labels)),
        "action": [(d.action or "").encode() for d in answer.decisions],
        "decision": [json.dumps(d.to_dict(), ensure_ascii=False, allow_nan=False).encode() for d in answer.decisions],
    }
    outputs, blobs = [], []
    for name, binary in inference.outputs.items():
        array = arrays[name]
        shape = list(array.shape) if isinstance(array, np.ndarray) else [len(array)]
        output: dict[str, Any] = {"name": name, "datatype": OUTPUTS[name], "shape": shape}
        if binary:
            blobs.append(array.astype("<f4").tobytes() if isinstance(array, np.ndarray) else _pack(array))
            output["parameters"] = {"binary_data_size": len(blobs[-1])}
        elif isinstance(array, np.ndarray):
            output["data"] = [None if np.isnan(value) else float(value) for value in array.ravel()]
        else:
            output["data"] = [value.decode() for value in array]
        outputs.append(output)
    response: dict[str, Any] = {"model_name": answer.loaded.name, "model_version": answer.loaded.version, "outputs": outputs}
    if inference.id is not None:
        response["id"] = inference.id
    head = json.dumps(response, ensure_ascii=False, allow_nan=False).encode()
    return head + b"".join(blobs), len(head) if blobs else None


def _length(header: str, most: int) -> int:
    if not (header.isascii() and header.isdigit() and len(header) < 19 and int(header) <= most):
        raise malformed("Inference-Header-Content-Length: must be a number of bytes that the body has")
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


def _elements(given: Mapping[str, Any], binary: bytes, most: int) -> list[bytes]:
    """The input's elements, from the JSON or from the binary data."""
    shape, size = given.get("shape"), given.get("parameters", {}).get("binary_data_size")
    if not isinstance(shape, list) or len(shape) != 1 or type(shape[0]) is not int or shape[0] < 1:
        raise invalid("inputs[0].shape: must be [N], the number of items, at least 1")
    if shape[0] > most:
        raise too_large(f"inputs[0]: more than {most} items; send them in several requests")
    if size is not None:
        if "data" in given:
            raise invalid("inputs[0]: has both data and binary_data_size")
        if type(size) is not int or size != len(binary):
            raise malformed("inputs[0].parameters.binary_data_size: is not the number of bytes after the JSON")
        elements = list(_unpack(binary, shape[0]))
    else:
        data = given.get("data")
        if binary or not isinstance(data, list) or not all(isinstance(element, str) for element in data):
            raise invalid("inputs[0].data: must be a list of strings, or parameters.binary_data_size be given")
        elements = [element.encode() for element in data]
    if len(elements) != shape[0]:
        raise invalid("inputs[0]: does not have as many elements as its shape says")
    return elements


def _outputs(request: Mapping[str, Any]) -> dict[str, bool]:
    """The outputs asked for, all if none is named, and whether each goes as binary data."""
    parameters, asked = request.get("parameters", {}), request.get("outputs")
    if not isinstance(parameters, dict):
        raise invalid("parameters: must be an object")
    binary = _flag(parameters, "binary_data_output", "parameters", otherwise=False)
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
            raise RequestError(422, f"{where}: the classification extension is not offered", "invalid")
        found[name] = _flag(output.get("parameters", {}), "binary_data", where, otherwise=binary)
    return found


def _flag(parameters: Mapping[str, Any], name: str, where: str, *, otherwise: bool) -> bool:
    value = parameters.get(name, otherwise)
    if not isinstance(value, bool):
        raise invalid(f"{where}.{name}: must be true or false")
    return value


def _unpack(binary: bytes, most: int) -> Iterator[bytes]:
    """Elements of a BYTES tensor: each has its length before it, 4 bytes, little-endian."""
    place = count = 0
    while place < len(binary):
        if len(binary) - place < 4:
            raise malformed("inputs[0]: the binary data break off")
        [length] = struct.unpack_from("<I", binary, place)
        place += 4
        count += 1
        if length > len(binary) - place or count > most:
            raise malformed("inputs[0]: the binary data do not hold as many elements as the shape says")
        yield binary[place : place + length]
        place += length


def _pack(elements: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)
