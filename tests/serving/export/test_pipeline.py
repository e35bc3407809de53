"""Every exported form decides what the trained model decides, or nothing is written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vigil_data.decode import Decoder
from vigil_data.errors import UserError
from vigil_data.items import presence
from vigil_data.loading.batch import collate
from vigil_data.loading.packing import pack
from vigil_modeling.specs import GatedFusion, MeanFusion
from vigil_serving.bundle import load as bundles
from vigil_serving.export.pipeline import export
from vigil_serving.export.torchscript import load
from vigil_serving.parity.backends import forms
from vigil_serving.parity.cases import make_cases, make_item
from vigil_serving.parity.compare import ParityError, compare, failures, outputs, tensors
from vigil_serving.runtime.onnx_sessions import open_session, open_sessions, run

PATTERNS = ("none", "text", "image", "audio", "text+image", "text+audio", "image+audio", "text+image+audio")


def test_bundle_has_all_files(exported) -> None:
    expected = {
        *(
            "bundle.json",
            "taxonomy.yaml",
            "thresholds.json",
            "calibration.json",
            "inputs.json",
            "resolved.yaml",
            "README.md",
            "manifest.json",
            "tokenizer/tokenizer.json",
        ),
        *("onnx/text.onnx", "onnx/image.onnx", "onnx/audio.onnx", "onnx/fusion.onnx", "onnx/model.onnx", "torchscript/model.pt"),
        *("golden/items.jsonl", "golden/inputs.npz", "golden/outputs.npz"),
    }
    assert {path.relative_to(exported.bundle).as_posix() for path in exported.bundle.rglob("*") if path.is_file()} == expected
    assert not list(exported.bundle.parent.glob(".*"))


def test_gate_covers_patterns_sizes_and_lengths(exported) -> None:
    cases = make_cases(exported.inputs, ())
    covered = {(presence(case.packed.segments), len(case.items)) for case in cases if not case.name.startswith("mixed")}
    assert covered >= {(pattern, size) for pattern in PATTERNS for size in (1, 2, 8)}
    assert {size for _, size in covered} == set(range(1, 9))
    assert [len(case.items) for case in cases if case.name.startswith("mixed")] == list(range(1, 9))
    assert {presence(case.packed.segments) for case in cases if case.golden} == set(PATTERNS)
    lengths = {case.packed.segments["text"].inputs["input_ids"].shape[1] for case in cases if "text" in case.packed.segments}
    assert len(lengths) >= 3
    for modality in ("text", "image", "audio"):
        most = max(np.bincount(case.packed.segments[modality].item).max() for case in cases if modality in case.packed.segments)
        assert most >= 3, f"no item of the gate has several segments of {modality}"
    texts = {item.text for case in cases for item in case.items}
    assert ("",) in texts
    assert (
        max(case.packed.segments["text"].item.size for case in cases if "very long" in case.name)
        == exported.inputs.text.max_passages
    )
    silent = [s for case in cases if (a := case.packed.segments.get("audio")) for s in a.inputs["waveform"] if not s.any()]
    black = [p for case in cases if (i := case.packed.segments.get("image")) for p in i.inputs["pixels"] if not p.any()]
    assert silent
    assert black


def test_measured_parity_is_in_the_bundle(exported) -> None:
    parity = bundles.read(exported.bundle).signature.parity
    assert [p.form for p in parity] == [
        "ONNX, graph by graph",
        "runtime, from bytes",
        "ONNX, single graph",
        "TorchScript",
    ]
    for p in parity:
        assert p.flips == 0
        assert p.max_difference <= 1e-4
        assert p.items == 8 * (1 + 2 + 8) + (3 + 4 + 5 + 6 + 7 + 3 + 4 + 5) + 36 + 12 + 10
        assert p.decisions == 3 * p.items
        assert (p.variant, p.real_items, p.real_flips) == ("fp32", 10, 0)


def test_every_pattern_in_batches_of_every_size(exported) -> None:
    cases = make_cases(exported.inputs, (), sizes=range(1, 9))
    covered = {(presence(case.packed.segments), len(case.items)) for case in cases}
    assert covered >= {(pattern, size) for pattern in PATTERNS for size in range(1, 9)}
    with torch.no_grad():
        expected = [torch.sigmoid(exported.model(collate(case.packed)).logits_NL).numpy() for case in cases]
    bundle = bundles.read(exported.bundle)
    measured = [compare(form, outputs(form, cases, expected), cases, expected, bundle) for form in forms(bundle)]
    assert len(measured) == 4
    assert failures(measured) == []


def test_forms_give_the_models_evidence(exported) -> None:
    bundle = bundles.read(exported.bundle)
    decoder = Decoder(exported.inputs, ())
    items = [
        make_item(pattern, n, exported.inputs)
        for n, pattern in enumerate([["text", "image", "audio"], ["audio"], [], ["image", "text"]] * 2)
    ]
    packed = pack([decoder.decode(item) for item in items])
    with torch.no_grad():
        prediction = exported.model(collate(packed))
    evidence = {m: e.numpy() for m, e in prediction.evidence.items()}
    scores = run(open_sessions(bundle), packed)
    single = open_session(bundle.graph("model")).run(None, tensors(packed, bundle.signature.graphs["model"].inputs))
    with torch.no_grad():
        traced = load(bundle.graph("torchscript"))(
            *(torch.from_numpy(a) for a in tensors(packed, bundle.signature.graphs["torchscript"].inputs).values())
        )
    for place, modality in enumerate(("text", "image", "audio")):
        for found in (scores.evidence[modality], single[1 + place], traced[1 + place].numpy()):
            np.testing.assert_allclose(found, evidence[modality], atol=1e-4)


def test_gated_fusion_of_one_modality(make_tiny, taxonomy, tmp_path: Path) -> None:
    model, inputs = make_tiny(GatedFusion(hidden=8), "image")
    to = tmp_path / "bundle"
    export(model, inputs, taxonomy, {}, (), to=to, facts={"name": "small"})
    bundle = bundles.read(to)
    assert bundle.signature.modalities == ("image",)
    assert bundle.thresholds == {"scam": 0.5, "promotion": 0.5, "tobacco": 0.5}
    assert not (to / "resolved.yaml").exists()
    assert not (to / "tokenizer").exists()


def test_disagreement_writes_nothing(make_tiny, taxonomy, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vigil_serving.export import onnx_export, torchscript

    model, inputs = make_tiny(MeanFusion(), "text")
    # The graphs are made of a model whose fusion is off by a little; the trained model, which is called as a whole, is not.
    monkeypatch.setattr(onnx_export, "fusion_graph", _shifted(onnx_export.fusion_graph, model, 0.01))
    monkeypatch.setattr(torchscript, "save", _shifted(torchscript.save, model, 0.01))
    before = (bundle_copy / "manifest.json").read_bytes()
    with pytest.raises(ParityError) as caught:
        export(model, inputs, taxonomy, {}, (), to=bundle_copy, facts={"name": "wrong"})
    *lines, last = str(caught.value).splitlines()
    assert len(lines) == 4, "every form fails, each with its line"
    assert last.endswith("no bundle was written")
    assert "TorchScript: probabilities differ by up to" in str(caught.value)
    assert (bundle_copy / "manifest.json").read_bytes() == before, "the older bundle stays"
    beside = {path.name for path in bundle_copy.parent.iterdir()}
    assert beside == {bundle_copy.name, f".{bundle_copy.name}.export"}, "only the steps that were done stay beside it"


def _shifted(function, model, by: float):
    """``function``, during which the model's logits are off."""
    right = model.fuse

    def wrapped(*arguments, **options):
        def fuse(tokens, items, rows):
            prediction = right(tokens, items, rows)
            return prediction._replace(logits_NL=prediction.logits_NL + by)

        object.__setattr__(model, "fuse", fuse)
        try:
            return function(*arguments, **options)
        finally:
            object.__delattr__(model, "fuse")

    return wrapped


def test_refusals(exported, tmp_path: Path) -> None:
    arguments = (exported.model, exported.inputs, exported.taxonomy)
    with pytest.raises(UserError, match="thresholds name nonsense"):
        export(*arguments, {"nonsense": 0.5}, (), to=tmp_path / "b", facts={"name": "x"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="other things in it"):
        export(*arguments, {}, (), to=tmp_path / "mine", facts={"name": "x"})
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_bundle_carries_no_example(exported) -> None:
    golden = [json.loads(line) for line in (exported.bundle / "golden" / "items.jsonl").read_text().splitlines()]
    ids = {item["id"] for line in golden for item in line["items"]}
    assert len(golden) == 9 + 12
    assert not ids & {f"made-{1000 + n}" for n in range(10)}
