"""Repositories on a real Triton server, which triton_home.py installs; its ONNX Runtime backend is a stand-in."""

import base64
import importlib.util
import itertools
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from vigil_data.items import MODALITIES, Item
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_serving.bundle import manifest
from vigil_serving.parity.cases import make_item
from vigil_serving.runtime.decisions import Decision
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.triton.options import ModelRepositoryOptions
from vigil_serving.triton.repository import write_repository

HOME = os.environ.get("VIGIL_TRITON_HOME")
PATTERNS = [pattern for n in range(4) for pattern in itertools.combinations(MODALITIES, n)]
pytestmark = [
    pytest.mark.prove,
    pytest.mark.skipif(HOME is None, reason="VIGIL_TRITON_HOME is not a folder written by triton_home.py"),
]


@pytest.fixture(scope="module")
def bundle(exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with a policy."""
    copy = shutil.copytree(exported.bundle, tmp_path_factory.mktemp("triton") / "bundle")
    cells = {(None, None): {"scam": {"limit": 0.625}, "tobacco": {"limit": 0.5}}}
    CompiledPolicy("house", 3, ("allow", "limit"), ("scam", "promotion", "tobacco"), None, cells).write(copy / manifest.POLICY)
    manifest.write_manifest(copy)
    return copy


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """HTTP and gRPC clients of a ready server."""
    folder = tmp_path_factory.mktemp("triton")
    write_repository(bundle, folder / "models", options=ModelRepositoryOptions(max_batch=8))
    spec = importlib.util.spec_from_file_location("triton_home", Path(__file__).with_name("triton_home.py"))
    home = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(home)
    http, grpc = free_ports(2)
    process = home.start(Path(HOME), folder / "models", http, grpc, folder / "log")
    clients = (
        tritonclient.http.InferenceServerClient(f"127.0.0.1:{http}"),
        tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{grpc}"),
    )
    try:
        wait(process, clients[1], folder / "log")
        yield clients
    finally:
        for client in clients:
            client.close()
        process.terminate()
        process.wait(30)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def wait(process: Any, client: Any, log: Path) -> None:
    for _ in range(120):
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        try:
            if client.is_server_ready():
                return
        except InferenceServerException:
            pass
        time.sleep(0.5)
    raise AssertionError(log.read_text(errors="replace")[-3000:])


def as_json(item: Item) -> bytes:
    media = {m: [base64.b64encode(medium).decode() for medium in getattr(item, m)] for m in ("image", "audio")}
    return json.dumps({"id": item.id, "text": item.text, **media}).encode()


def ask(client: Any, texts: Sequence[bytes]) -> Any:
    library = tritonclient.grpc if isinstance(client, tritonclient.grpc.InferenceServerClient) else tritonclient.http
    given = library.InferInput("item", [len(texts)], "BYTES")
    given.set_data_from_numpy(np.array(texts, np.object_))
    return client.infer("tiny", [given])


def difference(found: Any, expected: Sequence[Decision]) -> float:
    """Return the largest difference of a probability; everything else must be equal."""
    worst, probabilities_NL = 0.0, found.as_numpy("probabilities")
    for row, decision in enumerate(expected):
        decision_json = json.loads(found.as_numpy("decision")[row])
        assert (decision_json["id"], decision_json["labels"], decision_json["cut"]) == (
            decision.id,
            list(decision.labels),
            decision.cut,
        )
        assert found.as_numpy("action")[row].decode() == (decision.action or "")
        assert (decision_json["presence"], decision_json["error"]) == (decision.presence, decision.error)
        if decision.error is None:
            worst = max(worst, float(np.abs(probabilities_NL[row] - list(decision.probabilities.values())).max()))
        else:
            assert np.isnan(probabilities_NL[row]).all()
    return worst


def test_triton_server_decides_as_the_runtime(server, bundle: Path, exported, proofs) -> None:
    http, grpc = server
    items = [make_item(PATTERNS[n % 8], n, exported.inputs) for n in range(proofs(48, 480))]
    items[5] = Item("broken", image=(b"no picture",))
    expected = Scorer(bundle, threads=1, cache_bytes=0).score(items)
    assert {decision.action for decision in expected} == {"allow", "limit", None}
    worst = 0.0
    for size, client in ((1, grpc), (7, http), (48, grpc)):
        for start in range(0, len(items), size):
            found = ask(client, [as_json(item) for item in items[start : start + size]])
            worst = max(worst, difference(found, expected[start : start + size]))
    again = list(range(len(items))) * 2
    with ThreadPoolExecutor(8) as pool:
        found_again = list(pool.map(lambda place: ask(grpc, [as_json(items[place])]), again))
    worst = max([worst, *(difference(found, [expected[place]]) for place, found in zip(again, found_again, strict=True))])
    statistics = grpc.get_inference_statistics("tiny_text", as_json=True)["model_stats"][0]
    print(f"{5 * len(items)} answers, largest difference of a probability {worst:.1e}")
    print(f"text encoder: {statistics['inference_count']} passages in {statistics['execution_count']} runs")
    assert worst <= 1e-5


def test_triton_server_refuses_malformed_items_and_continues(server, bundle: Path, exported) -> None:
    _, grpc = server
    for text in (b"{", b"[]", b'{"id": "1", "image": ["*"]}', b'{"id": "1", "video": []}'):
        with pytest.raises(InferenceServerException, match=r"item\[0\]") as caught:
            ask(grpc, [text])
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert ask(grpc, []).as_numpy("probabilities").shape == (0, 3)
    item = make_item(MODALITIES, 2, exported.inputs)
    assert difference(ask(grpc, [as_json(item)]), Scorer(bundle, threads=1).score([item])) <= 1e-5
