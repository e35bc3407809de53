"""`measure_invariance` finds a backend whose results depend on the other items of a batch."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

from vigil_data.decode import Decoder
from vigil_data.errors import UserError
from vigil_data.loading.packing import pack
from vigil_serving.bundle.load import load_bundle
from vigil_serving.bundle.manifest import write_manifest
from vigil_serving.bundle.metadata import Tolerance
from vigil_serving.export import quantization, quantization_selection
from vigil_serving.parity.batch_invariance import MAX_ITEMS, SHUFFLED_SIZES, measure_invariance, rearrange
from vigil_serving.parity.cases import make_cases, make_item, real_cases
from vigil_serving.parity.compare import Backend, compare_outputs, failure
from vigil_serving.parity.verify import verify_bundle


def _quantize_per_tensor(encoder: Path, to: Path) -> None:
    """Quantize with one scale for the whole batch, as ONNX Runtime's dynamic quantization does."""
    quantization.prepare(encoder, to.with_suffix(".prepared"))
    quantize_dynamic(to.with_suffix(".prepared"), to, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8)


@pytest.fixture(scope="module")
def per_tensor(exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("planted") / "text.onnx"
    _quantize_per_tensor(exported.bundle / "onnx" / "text.onnx", to)
    return to


def test_rearrange_packs_each_item_alone_and_shuffled_as_decoding_it_again_does(exported) -> None:
    examples = [make_item([["text"], ["text", "image"], ["audio"]][n % 3], 50 + n, exported.inputs) for n in range(40)]
    cases = make_cases(exported.inputs, examples)
    found, decoder = rearrange(cases), Decoder(exported.inputs, ())
    for case, batch in zip(found.cases, found.sources, strict=True):
        assert case.items == tuple(cases[number].items[row] for number, row in batch)
        again = pack([decoder.decode(item) for item in case.items]).segments
        assert again.keys() == case.packed.segments.keys()
        for modality, segments in again.items():
            assert np.array_equal(segments.item, case.packed.segments[modality].item)
            for name, array in segments.inputs.items():
                assert np.array_equal(array, case.packed.segments[modality].inputs[name]), (case.name, name)
    alone, shuffled = found.sources[:MAX_ITEMS], found.sources[MAX_ITEMS:]
    assert [len(batch) for batch in alone] == [1] * MAX_ITEMS
    assert [len(batch) for batch in shuffled] == [*SHUFFLED_SIZES, MAX_ITEMS - sum(SHUFFLED_SIZES)]
    places = [place for batch in alone for place in batch]
    assert sorted(place for batch in shuffled for place in batch) == sorted(set(places))
    assert places != [place for batch in shuffled for place in batch]
    names = {cases[number].name for number, _ in places}
    assert {"loudest sound", "empty text", "black image"} <= names
    assert sum(cases[number].real for number, _ in places) >= 1


def test_measure_invariance_counts_what_depends_on_the_batch(exported) -> None:
    bundle = load_bundle(exported.bundle)
    cases = make_cases(exported.inputs, [])

    def run(share: float) -> Backend:
        """A label's probability is near its threshold, and falls with the number of items."""
        raw_L = np.array([bundle.thresholds[label] for label in bundle.labels]) + 0.01
        return Backend("made", "fp32", lambda case: np.tile(raw_L - share * (len(case.items) > 8), (len(case.items), 1)))

    for share, flips in ((0.0, 0), (0.005, 0), (0.02, MAX_ITEMS - sum(SHUFFLED_SIZES))):
        outputs = [run(share).run(case) for case in cases]
        found = measure_invariance(run(share), outputs, rearrange(cases), bundle)
        assert found.max_difference == pytest.approx(share, abs=1e-12)
        assert found.flips == flips * len(bundle.labels)
        parity = compare_outputs(run(share), outputs, cases, outputs, bundle)
        reason = failure(replace(parity, invariance=found))
        assert (reason is not None) == (share > 0)
        assert reason is None or f"{MAX_ITEMS} items differ in probabilities by up to {share:.1e} (allowed 0.0001)" in reason


def test_select_refuses_a_quantization_with_one_scale_for_the_batch(exported, per_tensor: Path, tmp_path: Path) -> None:
    made = [make_item(["text"], 300 + n, exported.inputs) for n in range(24)]
    cases = real_cases(made, Decoder(exported.inputs, ()))
    bundle = load_bundle(exported.bundle)
    baseline = quantization_selection.fp32_baseline(bundle, cases, Tolerance(1.0, 1.0), 5)
    prepared = tmp_path / "prepared.onnx"
    quantization.prepare(bundle.graph("text"), prepared)
    files = {"per tensor": per_tensor}
    for name, quantizer in quantization.candidates(prepared, reduce_range=False).items():
        files[name] = tmp_path / f"{name}.onnx"
        quantizer([{"input_ids": np.ones((1, 5), np.int64), "attention_mask": np.ones((1, 5), np.int64)}], files[name])
    found = {c.name: c for c in quantization_selection.select("text", files, [], baseline)}
    assert found["per tensor"].failed is not None
    assert found["per tensor"].failed.startswith(
        "results depend on the other items of a batch: alone or shuffled, 24 items differ"
    )
    assert found["per tensor"].parity.invariance.max_difference > 1e-4
    for name in files.keys() - {"per tensor"}:
        assert found[name].failed is None, name
        assert found[name].parity.invariance.max_difference <= 1e-6, name


def test_verify_refuses_an_encoder_whose_results_depend_on_the_batch(quantized: Path, per_tensor: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(quantized, tmp_path / "copy")
    good = {p.backend: p for p in verify_bundle(copy).parity}
    assert good.keys() >= {"ONNX, graph by graph", "ONNX, int8", "TorchScript"}
    assert all(p.invariance is not None and p.invariance.max_difference <= 1e-6 for p in good.values())
    assert all(p.invariance.flips == p.invariance.action_flips == 0 for p in good.values())
    shutil.copy(per_tensor, copy / "onnx" / "text.int8.onnx")
    write_manifest(copy)
    with pytest.raises(UserError, match=r"ONNX, int8: .*results depend on the other items of a batch"):
        verify_bundle(copy)
