"""`verify_bundle` refuses altered bundles, and disagreeing ones even if their hashes fit."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from vigil_data.errors import UserError
from vigil_serving.bundle import manifest
from vigil_serving.parity.verify import verify_bundle


def test_verify_accepts_an_unaltered_bundle(exported) -> None:
    tasks: list[str] = []
    found = verify_bundle(str(exported.bundle), lambda task, *_: tasks.append(task))
    assert len(found.parity) == 4
    assert all(p.cases == 21 and p.flips == 0 and p.max_difference <= 1e-4 for p in found.parity)
    assert found.files == 17
    assert list(dict.fromkeys(tasks))[:3] == ["hashes", "decoding", "ONNX, graph by graph"]


def test_verify_refuses_a_changed_weight(bundle_copy: Path) -> None:
    path = bundle_copy / "onnx" / "text.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"onnx/text\.onnx was changed"):
        verify_bundle(bundle_copy)


def test_verify_refuses_other_weights_with_fitting_hashes(bundle_copy: Path) -> None:
    graph = onnx.load(bundle_copy / "onnx" / "fusion.onnx")
    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.2), tensor.name))
    onnx.save(graph, bundle_copy / "onnx" / "fusion.onnx")
    manifest.write_manifest(bundle_copy)
    with pytest.raises(UserError) as caught:
        verify_bundle(bundle_copy)
    assert len(caught.value.lines) == 2, "the graphs one by one, and the runtime, which uses them"
    pattern = r"ONNX, graph by graph: golden case .*: outputs differ; probabilities differ by up to"
    assert re.search(pattern, caught.value.lines[0])


def test_verify_refuses_other_decoding(bundle_copy: Path) -> None:
    facts = json.loads((bundle_copy / "inputs.json").read_text())
    facts["image"]["background"] = 0
    (bundle_copy / "inputs.json").write_text(json.dumps(facts))
    manifest.write_manifest(bundle_copy)
    with pytest.raises(UserError, match="image decodes to other pixels than at the export") as caught:
        verify_bundle(bundle_copy)
    assert "exported with tokenizers" in caught.value.lines[-1]


def test_verify_refuses_damaged_golden_cases(bundle_copy: Path) -> None:
    (bundle_copy / "golden" / "outputs.npz").write_bytes(b"not a zip file")
    manifest.write_manifest(bundle_copy)
    with pytest.raises(UserError, match="golden cases cannot be read"):
        verify_bundle(bundle_copy)
