"""`verify_bundle` refuses altered bundles, and disagreeing ones even if their hashes fit."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from vigil_data.errors import UserError
from vigil_evaluation.calibration.calibrators import Calibration, Calibrator, FittedCalibration, LabelCalibration
from vigil_serving.bundle import manifest
from vigil_serving.bundle.decisions_graph import decisions_graph
from vigil_serving.bundle.load import load_bundle
from vigil_serving.parity.verify import verify_bundle


def test_verify_accepts_an_unaltered_bundle(exported) -> None:
    tasks: list[str] = []
    found = verify_bundle(str(exported.bundle), lambda task, *_: tasks.append(task))
    assert len(found.parity) == 4
    assert all(p.cases == 22 and p.flips == 0 and p.max_difference <= 1e-4 for p in found.parity)
    assert found.files == 19
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


def test_verify_refuses_a_decisions_graph_with_other_thresholds(bundle_copy: Path) -> None:
    graph = onnx.load(bundle_copy / "onnx" / "decisions.onnx")
    [thresholds] = [tensor for tensor in graph.graph.initializer if list(tensor.dims) == [3] and tensor.data_type == 11]
    thresholds.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(thresholds) + 0.1, thresholds.name))
    onnx.save(graph, bundle_copy / "onnx" / "decisions.onnx")
    manifest.write_manifest(bundle_copy)
    with pytest.raises(UserError, match=r"ONNX, graph by graph: golden case .* of \d+ decisions differ") as caught:
        verify_bundle(bundle_copy)
    assert len(caught.value.lines) == 1, "no other backend uses the graph"


def test_verify_refuses_a_decisions_graph_with_another_calibration(bundle_copy: Path) -> None:
    calibrator = Calibrator("platt", {"slope": 1.0, "intercept": 0.002})
    bundle = load_bundle(bundle_copy)
    label = LabelCalibration(calibrator, {}, {}, 0, 0)
    other = FittedCalibration(Calibration(None, dict.fromkeys(bundle.labels, label)), None, None)
    onnx.save(decisions_graph(replace(bundle, calibrated=other)).proto, bundle_copy / "onnx" / "decisions.onnx")
    manifest.write_manifest(bundle_copy)
    with pytest.raises(UserError, match=r"ONNX, graph by graph: .*probabilities differ by up to [45]\.\de-04"):
        verify_bundle(bundle_copy)


@pytest.mark.parametrize("change", [("labels", ["tobacco"]), ("action", "remove"), ("probabilities", {"scam": 0.1})])
def test_verify_refuses_other_golden_decisions(bundle_copy: Path, change: tuple[str, object]) -> None:
    file = bundle_copy / "golden" / "decisions.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[3]["decisions"][0] |= dict([change])
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest.write_manifest(bundle_copy)
    with pytest.raises(UserError, match="the recorded probabilities give other decisions than at the export") as caught:
        verify_bundle(bundle_copy)
    assert len(caught.value.lines) == 1
    assert lines[3]["case"] in caught.value.lines[0]
