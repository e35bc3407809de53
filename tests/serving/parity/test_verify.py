"""`vigil verify` refuses what was altered and what disagrees, even if the hashes were made to fit."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from vigil_data.errors import UserError
from vigil_serving.bundle import manifest
from vigil_serving.parity.verify import verify


def test_untouched_bundle_passes(exported) -> None:
    steps: list[str] = []
    found = verify(exported.bundle, steps.append)
    assert len(found.parity) == 4
    assert all(p.cases == 21 and p.flips == 0 and p.max_difference <= 1e-4 for p in found.parity)
    assert found.files == 17
    assert steps[:2] == ["files", "decoding"]


def test_changed_weight_is_refused(bundle_copy: Path) -> None:
    path = bundle_copy / "onnx" / "text.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"onnx/text\.onnx was changed"):
        verify(bundle_copy)


def test_other_weights_with_fitting_hashes_are_refused(bundle_copy: Path) -> None:
    graph = onnx.load(bundle_copy / "onnx" / "fusion.onnx")
    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.2), tensor.name))
    onnx.save(graph, bundle_copy / "onnx" / "fusion.onnx")
    manifest.write_manifest(bundle_copy)
    with pytest.raises(UserError) as caught:
        verify(bundle_copy)
    assert len(caught.value.lines) == 2, "the graphs one by one, and the runtime that uses them"
    assert "ONNX, graph by graph: probabilities differ" in caught.value.lines[0]


def test_other_decoding_is_refused(bundle_copy: Path) -> None:
    facts = json.loads((bundle_copy / "inputs.json").read_text())
    facts["image"]["background"] = 0
    (bundle_copy / "inputs.json").write_text(json.dumps(facts))
    manifest.write_manifest(bundle_copy)
    with pytest.raises(UserError, match="image decodes to other pixels than at the export") as caught:
        verify(bundle_copy)
    assert "exported with tokenizers" in caught.value.lines[-1]


def test_damaged_golden_cases_are_refused(bundle_copy: Path) -> None:
    (bundle_copy / "golden" / "outputs.npz").write_bytes(b"not a zip file")
    manifest.write_manifest(bundle_copy)
    with pytest.raises(UserError, match="golden cases cannot be read"):
        verify(bundle_copy)
