"""Open Inference Protocol: a real server with Triton's own client, and parsing of arbitrary bytes."""

import contextlib
import json
import struct
from collections.abc import Callable

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from vigil_serving.protocol.errors import RequestError
from vigil_serving.server.kserve import _pack, _unpack, parse
from vigil_serving.server.settings import RequestLimits

from .conftest import ServerProcess, as_json


@pytest.fixture(scope="module")
def client(server: ServerProcess):
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


def tensor(elements: list[str], *, binary: bool) -> triton.InferInput:
    made = triton.InferInput("item", [len(elements)], "BYTES")
    made.set_data_from_numpy(np.array([element.encode() for element in elements], object), binary_data=binary)
    return made


def test_kserve_health_and_metadata(client, server: ServerProcess) -> None:
    digest = server.get("/v1/bundle").json()["digest"]
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", digest[:12])
    assert not client.is_model_ready("other")
    assert not client.is_model_ready("tiny", "0" * 12)
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata("tiny")
    assert metadata["versions"] == [digest[:12]]
    assert metadata["inputs"] == [{"name": "item", "datatype": "BYTES", "shape": [-1]}]
    assert [output["shape"] for output in metadata["outputs"]] == [[-1, 3], [-1], [-1]]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_kserve_infer_returns_the_runtime_decisions(client, items, expected, binary: bool, named: bool) -> None:
    names = ("probabilities", "action", "decision")
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names] if named else None
    given = tensor([json.dumps(as_json(item)) for item in items], binary=binary)
    result = client.infer("tiny", [given], outputs=outputs, request_id="seven")
    probabilities = result.as_numpy("probabilities")
    assert probabilities.shape == (len(items), 3)
    assert probabilities.dtype == np.float32
    wanted = [list(expected[item.id].probabilities.values()) for item in items]
    np.testing.assert_allclose(probabilities, wanted, atol=1e-5)
    assert [json.loads(element)["id"] for element in result.as_numpy("decision")] == [item.id for item in items]
    assert len(result.as_numpy("action")) == len(items)
    assert result.get_response()["id"] == "seven"
    assert result.get_response()["model_name"] == "tiny"


def test_kserve_infer_returns_only_the_requested_outputs(client) -> None:
    given = tensor(['{"id": "a", "text": ["call"]}'], binary=True)
    result = client.infer("tiny", [given], outputs=[triton.InferRequestedOutput("action", binary_data=False)])
    assert [output["name"] for output in result.get_response()["outputs"]] == ["action"]


@pytest.mark.parametrize("binary", [True, False])
def test_kserve_infer_returns_nan_for_undecodable_items(client, binary: bool) -> None:
    given = tensor(['{"id": "a", "image": ["AAAA"]}', '{"id": "b", "text": ["call"]}'], binary=binary)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("probabilities", "decision")]
    result = client.infer("tiny", [given], outputs=outputs)
    np.testing.assert_array_equal(np.isnan(result.as_numpy("probabilities").astype(np.float32)), [[True] * 3, [False] * 3])
    assert json.loads(result.as_numpy("decision")[0])["error"].startswith("image[0]")


def test_kserve_errors_are_readable_by_the_client(client) -> None:
    good = tensor(['{"id": "a"}'], binary=True)
    with pytest.raises(InferenceServerException, match="no such model"):
        client.infer("other", [good])
    with pytest.raises(InferenceServerException, match="no such version"):
        client.infer("tiny", [good], model_version="1")
    with pytest.raises(InferenceServerException, match=r"item\[0\] is not JSON"):
        client.infer("tiny", [tensor(["no item"], binary=True)])
    with pytest.raises(InferenceServerException, match="must be one of"):
        client.infer("tiny", [good], outputs=[triton.InferRequestedOutput("other")])
    with pytest.raises(InferenceServerException, match="classification"):
        client.infer("tiny", [good], outputs=[triton.InferRequestedOutput("action", class_count=2)])
    with pytest.raises(InferenceServerException, match="compressed"):
        client.infer("tiny", [good], request_compression_algorithm="gzip")


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_pack_and_unpack_round_trip(elements: list[bytes]) -> None:
    assert list(_unpack(_pack(elements), len(elements))) == elements


def request(**changes) -> bytes:
    given = {"name": "item", "datatype": "BYTES", "shape": [1], "data": ['{"id": "a"}']} | changes.pop("given", {})
    return json.dumps({"inputs": [{k: v for k, v in given.items() if v is not None}], **changes}).encode()


@pytest.mark.parametrize(
    ("body", "length", "status", "message"),
    [
        (b"[]", None, 422, "object"),
        (request(id=5), None, 422, "id"),
        (request(inputs=[]), None, 422, "inputs"),
        (request(given={"name": "other"}), None, 422, "name"),
        (request(given={"datatype": "FP32"}), None, 422, "datatype"),
        (request(given={"shape": [1, 1]}), None, 422, "shape"),
        (request(given={"shape": [True]}), None, 422, "shape"),
        (request(given={"shape": [0]}), None, 422, "shape"),
        (request(given={"shape": [2]}), None, 422, "elements"),
        (request(given={"shape": [10**12]}), None, 413, "more than 64"),
        (request(given={"data": [5]}), None, 422, "strings"),
        (request(given={"data": None}), None, 422, "data"),
        (request(given={"parameters": 5}), None, 422, "parameters"),
        (request(parameters=5), None, 422, "parameters"),
        (request(parameters={"binary_data_output": 1}), None, 422, "true or false"),
        (request(outputs={}), None, 422, "outputs"),
        (request(outputs=[5]), None, 422, "outputs[0]"),
        (request(outputs=[{"name": "action"}] * 2), None, 422, "at most once"),
        (request(), "-1", 400, "Inference-Header"),
        (request(), "9" * 30, 400, "Inference-Header"),
        (request(), "²", 400, "Inference-Header"),
        (request(), "5", 400, "not JSON"),
        (request() + b"rest", str(len(request())), 422, "data"),
    ],
)
def test_parse_reports_mistakes(body: bytes, length: str | None, status: int, message: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse(body, length, RequestLimits())
    assert refused.value.status == status
    assert message in refused.value.line


def with_binary(binary: bytes, size: int, count: int = 1) -> tuple[bytes, str]:
    head = request(given={"data": None, "shape": [count], "parameters": {"binary_data_size": size}})
    return head + binary, str(len(head))


@pytest.mark.parametrize(
    ("binary", "size", "count"),
    [
        (b"\x02\0\0\0{}", 7, 1),
        (b"\x02\0\0", 3, 1),
        (b"\xff\xff\xff\xff{}", 6, 1),
        (b"\0\0\0\0" * 5, 20, 1),
        (b"\x02\0\0\0{}", 6, 2),
    ],
)
def test_parse_refuses_inconsistent_binary_data(binary: bytes, size: int, count: int) -> None:
    with pytest.raises(RequestError) as refused:
        parse(*with_binary(binary, size, count), RequestLimits())
    assert refused.value.status in {400, 422}


@given(st.binary(max_size=60), st.integers(0, 70), st.integers(1, 3))
def test_parse_reads_or_refuses_any_binary_data(binary: bytes, size: int, count: int) -> None:
    with contextlib.suppress(RequestError):
        assert len(parse(*with_binary(binary, size, count), RequestLimits()).items) == count


def test_parse_reads_binary_data() -> None:
    element = b'{"id": "a", "text": ["call"]}'
    body, length = with_binary(struct.pack("<I", len(element)) + element, len(element) + 4)
    inference = parse(body, length, RequestLimits())
    assert inference.items[0].text == ("call",)
    assert inference.outputs == {"probabilities": False, "action": False, "decision": False}


def test_kserve_client_sends_the_api_key(start: Callable[..., ServerProcess], exported) -> None:
    key = "triton-key-0123456789"
    running = start(exported.bundle, environment={"VIGIL_API_KEY": key})
    inputs = [tensor([json.dumps({"id": "a", "text": ["call now"]})], binary=True)]
    with triton.InferenceServerClient(f"127.0.0.1:{running.port}") as client:
        assert client.is_server_ready()
        with pytest.raises(InferenceServerException, match="send an API key as Bearer"):
            client.infer("tiny", inputs)
        headers = {"Authorization": f"Bearer {key}"}
        assert client.is_model_ready("tiny", headers=headers)
        assert client.infer("tiny", inputs, headers=headers).as_numpy("probabilities").shape == (1, 3)
