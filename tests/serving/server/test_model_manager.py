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
from vigil_serving.bundle.load import load_bundle
from vigil_serving.parity.golden import read_golden, write_golden
from vigil_serving.parity.verify import verify_bundle
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.server.model_manager import load

FAR = 0.2
"""Difference of a probability beyond which an int8 variant was refused by an earlier server."""


@pytest.fixture
def int8_bundle(bundle_copy: Path) -> Path:
    """The tiny bundle with spread probabilities, and a variant int8 far from float32 with its own recorded outputs."""
    metadata = json.loads((bundle_copy / manifest.METADATA).read_text())
    for other in ("model", "torchscript"):
        (bundle_copy / metadata["graphs"].pop(other)["file"]).unlink()
    metadata["graphs"]["text.int8"] = {**metadata["graphs"]["text"], "file": "onnx/text.int8.onnx"}
    metadata["variants"]["int8"] = {**metadata["variants"]["fp32"], "text": "text.int8"}
    write_json(bundle_copy / manifest.METADATA, metadata)
    _scale(bundle_copy / "onnx" / "fusion.onnx", "weight_LD", 100.0, bundle_copy / "onnx" / "fusion.onnx")
    noise = np.random.default_rng(0).normal(size=16)
    _scale(
        bundle_copy / "onnx" / "text.onnx", "projections.text.modality_D", 1e3 * noise, bundle_copy / "onnx" / "text.int8.onnx"
    )
    manifest.write_manifest(bundle_copy)
    outputs = {variant: _run(bundle_copy, variant) for variant in ("fp32", "int8")}
    assert max(np.abs(outputs["int8"][name] - fp32_NL).max() for name, fp32_NL in outputs["fp32"].items()) > FAR
    golden = read_golden(bundle_copy).cases
    write_golden(
        bundle_copy,
        load_bundle(bundle_copy),
        golden,
        {variant: [of_variant[case.name] for case in golden] for variant, of_variant in outputs.items()},
    )
    manifest.write_manifest(bundle_copy)
    return bundle_copy


def _scale(graph: Path, name: str, by: float | np.ndarray, to: Path) -> None:
    """Multiply the weights whose name contains ``name``."""
    proto = onnx.load(graph)
    for tensor in proto.graph.initializer:
        if name in tensor.name:
            scaled = (numpy_helper.to_array(tensor) * by).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
    onnx.save(proto, to)


def _run(bundle: Path, variant: str) -> dict[str, np.ndarray]:
    scorer = Scorer(bundle, variant=variant)
    return {case.name: scorer.raw_probabilities(case.items) for case in read_golden(bundle).cases}


def _record(bundle: Path, variant: str, outputs: dict[str, np.ndarray]) -> None:
    file = manifest.GOLDEN_OUTPUTS if variant == "fp32" else manifest.golden_outputs(variant)
    np.savez_compressed(bundle / file, allow_pickle=False, **outputs)
    manifest.write_manifest(bundle)


def test_load_accepts_an_int8_bundle_that_reproduces_its_outputs(int8_bundle: Path) -> None:
    assert load(int8_bundle, "int8", threads=1).scorer.variant == "int8"
    assert load(int8_bundle, "fp32", threads=1).scorer.variant == "fp32"
    assert "ONNX, int8" in [p.backend for p in verify_bundle(int8_bundle).parity]


def test_load_refuses_an_int8_bundle_that_does_not_reproduce_its_outputs(int8_bundle: Path) -> None:
    with np.load(int8_bundle / manifest.golden_outputs("int8")) as recorded:
        outputs = dict(recorded)
    outputs["emoji alone"] = outputs["emoji alone"] + np.float32(0.03) * np.where(outputs["emoji alone"] < 0.5, 1, -1)
    _record(int8_bundle, "int8", outputs)
    line = r"golden case emoji alone: outputs differ; probabilities differ by up to 3\.0e-02 \(allowed 0\.02\)"
    with pytest.raises(UserError, match=rf"runtime, from bytes: {line}"):
        load(int8_bundle, "int8", threads=1)
    with pytest.raises(UserError, match=rf"ONNX, int8: {line}"):
        verify_bundle(int8_bundle)
    load(int8_bundle, "fp32", threads=1)
