"""Loading of a bundle by the server: the golden outputs of the served variant must be reproduced."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from vigil_data.errors import UserError
from vigil_data.filesystem import write_json
from vigil_serving.bundle import manifest
from vigil_serving.parity.golden import read_golden
from vigil_serving.parity.verify import verify_bundle
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.server.model_manager import load

FAR = 0.2
"""Difference of a probability beyond which an int8 variant was refused by an earlier server."""


@pytest.fixture
def int8_bundle(bundle_copy: Path) -> Path:
    """The tiny bundle with a variant int8 whose text encoder is far from float32's, and its recorded outputs."""
    graph = onnx.load(bundle_copy / "onnx" / "text.onnx")
    for tensor in graph.graph.initializer:
        if "projections.text.modality" in tensor.name:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(50), tensor.name))
    onnx.save(graph, bundle_copy / "onnx" / "text.int8.onnx")
    metadata = json.loads((bundle_copy / manifest.METADATA).read_text())
    metadata["graphs"]["text.int8"] = {**metadata["graphs"]["text"], "file": "onnx/text.int8.onnx"}
    metadata["variants"]["int8"] = {**metadata["variants"]["fp32"], "text": "text.int8"}
    write_json(bundle_copy / manifest.METADATA, metadata)
    manifest.write_manifest(bundle_copy)
    golden = read_golden(bundle_copy)
    scorer = Scorer(bundle_copy, variant="int8")
    outputs = {case.name: scorer.raw_probabilities(case.items) for case in golden.cases}
    differences = [
        np.abs(outputs[case.name] - fp32_NL).max() for case, fp32_NL in zip(golden.cases, golden.expected("fp32"), strict=True)
    ]
    assert max(differences) > FAR
    _record(bundle_copy, outputs)
    return bundle_copy


def _record(bundle: Path, outputs: dict[str, np.ndarray]) -> None:
    np.savez_compressed(bundle / manifest.golden_outputs("int8"), allow_pickle=False, **outputs)
    manifest.write_manifest(bundle)


def test_load_accepts_an_int8_bundle_that_reproduces_its_outputs(int8_bundle: Path) -> None:
    assert load(int8_bundle, "int8", threads=1).scorer.variant == "int8"
    assert load(int8_bundle, "fp32", threads=1).scorer.variant == "fp32"
    assert "ONNX, int8" in [p.backend for p in verify_bundle(int8_bundle).parity]


def test_load_refuses_an_int8_bundle_that_does_not_reproduce_its_outputs(int8_bundle: Path) -> None:
    with np.load(int8_bundle / manifest.golden_outputs("int8")) as recorded:
        outputs = dict(recorded)
    outputs["emoji alone"] = outputs["emoji alone"] + np.float32(0.03) * np.where(outputs["emoji alone"] < 0.5, 1, -1)
    _record(int8_bundle, outputs)
    line = r"golden case emoji alone: outputs differ; probabilities differ by up to 3\.0e-02 \(allowed 0\.02\)"
    with pytest.raises(UserError, match=rf"runtime, from bytes: {line}"):
        load(int8_bundle, "int8", threads=1)
    with pytest.raises(UserError, match=rf"ONNX, int8: {line}"):
        verify_bundle(int8_bundle)
    load(int8_bundle, "fp32", threads=1)
