"""`select` chooses the fastest quantization within the tolerance, or float32 if none is faster."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from vigil_data.decode import Decoder
from vigil_serving.bundle.load import load_bundle
from vigil_serving.bundle.metadata import Tolerance
from vigil_serving.export import quantization_selection
from vigil_serving.parity.cases import make_item, real_cases


@pytest.fixture(scope="module")
def baseline(exported) -> quantization_selection.Fp32Baseline:
    made = [make_item(["image"] if n % 3 == 0 else ["text", "image"], 300 + n, exported.inputs) for n in range(30)]
    items = [replace(item, targets={"scam": float(n % 2)}) for n, item in enumerate(made)]
    cases = real_cases(items, Decoder(exported.inputs, ()))
    return quantization_selection.fp32_baseline(load_bundle(exported.bundle), cases, Tolerance(1e-3, 0.01, 0.01), 5)


@pytest.fixture(scope="module")
def scaled(exported, tmp_path_factory: pytest.TempPathFactory):
    """Function that writes the text encoder with its last weights multiplied by a factor."""

    def make(factor: float) -> Path:
        graph = onnx.load(exported.bundle / "onnx" / "text.onnx")
        for tensor in graph.graph.initializer:
            if "projections.text.modality" in tensor.name:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
        to = tmp_path_factory.mktemp("scaled") / "text.onnx"
        onnx.save(graph, to)
        return to

    return make


def _chosen(files, baseline, monkeypatch: pytest.MonkeyPatch, times: dict[str, float]) -> tuple[str, dict[str, str | None]]:
    monkeypatch.setattr(quantization_selection, "_times", lambda files, _: {name: times[name] for name in files})
    found = quantization_selection.select("text", files, [], baseline)
    (name,) = [c.name for c in found if c.chosen]
    return name, {c.name: c.failed for c in found}


def test_select_chooses_the_fastest_within_the_tolerance(baseline, scaled, monkeypatch) -> None:
    files = {
        "good": scaled(1.0),
        "good and faster": scaled(1.0),
        "bad and fastest": scaled(500.0),
        "unmade": "could not be made: x",
    }
    times = {"fp32": 10.0, "good": 8.0, "good and faster": 7.0, "bad and fastest": 1.0}
    name, failed = _chosen(files, baseline, monkeypatch, times)
    assert name == "good and faster"
    assert failed["good"] is None
    assert "probabilities differ by up to" in failed["bad and fastest"]
    assert failed["unmade"] == "could not be made: x"


def test_select_keeps_float32_without_gain_or_items_to_measure_on(baseline, scaled, monkeypatch) -> None:
    files = {"good": scaled(1.0)}
    assert _chosen(files, baseline, monkeypatch, {"fp32": 10.0, "good": 9.6})[0] == "fp32"
    assert _chosen(files, baseline, monkeypatch, {"fp32": 10.0, "good": 9.4})[0] == "good"
    without = baseline._replace(cases=[], tokens=[], expected=[])
    name, failed = _chosen(files, without, monkeypatch, {"fp32": 10.0, "good": 1.0})
    assert (name, failed["good"]) == ("fp32", "no real example has any text to measure it on")


def test_select_measures_only_items_with_the_modality(baseline, scaled, monkeypatch) -> None:
    monkeypatch.setattr(quantization_selection, "_times", lambda files, _: dict.fromkeys(files, 1.0))
    _, found = quantization_selection.select("text", {"other": scaled(500.0)}, [], baseline)
    batches = [case for case in baseline.cases if "text" in case.packed.segments]
    assert found.parity.decisions == 3 * sum(len(case.items) for case in batches)
    assert found.parity.max_difference > 1e-3
    assert found.parity.ap_change["scam"] is not None
    assert found.parity.ap_change["tobacco"] is None


def test_times_measures_the_graphs(exported, scaled) -> None:
    feed = {"input_ids": np.ones((2, 5), np.int64), "attention_mask": np.ones((2, 5), np.int64)}
    times = quantization_selection._times({"fp32": scaled(1.0)}, [feed])
    assert 0 < times["fp32"] < 1000
    assert quantization_selection._times({"fp32": scaled(1.0)}, []) == {"fp32": None}
