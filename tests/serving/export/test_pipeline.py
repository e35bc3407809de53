"""`export_model`: every exported format decides as the trained model does, or nothing is written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vigil_data.decode import Decoder
from vigil_data.errors import UserError
from vigil_data.loading.batch import collate
from vigil_data.loading.packing import pack
from vigil_data.presence import presence_pattern
from vigil_modeling.specs import GatedFusion, MeanFusion
from vigil_serving.bundle.load import load_bundle
from vigil_serving.export.pipeline import export_model
from vigil_serving.export.publish import Provenance
from vigil_serving.parity.backends import load_backends, load_torchscript
from vigil_serving.parity.cases import make_cases, make_item
from vigil_serving.parity.compare import ParityError, compare_outputs, failures, input_arrays, run_backend
from vigil_serving.runtime.onnx_sessions import open_session, open_sessions, run

PATTERNS = ("none", "text", "image", "audio", "text+image", "text+audio", "image+audio", "text+image+audio")


def test_export_model_writes_all_files(exported) -> None:
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
        *("onnx/decisions.onnx", "golden/items.jsonl", "golden/inputs.npz", "golden/outputs.npz", "golden/decisions.jsonl"),
    }
    assert {path.relative_to(exported.bundle).as_posix() for path in exported.bundle.rglob("*") if path.is_file()} == expected
    assert not list(exported.bundle.parent.glob(".*"))


def test_make_cases_covers_patterns_sizes_and_lengths(exported) -> None:
    cases = make_cases(exported.inputs, ())
    covered = {(presence_pattern(case.packed.segments), len(case.items)) for case in cases if not case.name.startswith("mixed")}
    assert covered >= {(pattern, size) for pattern in PATTERNS for size in (1, 2, 8)}
    assert {size for _, size in covered} == set(range(1, 9))
    assert [len(case.items) for case in cases if case.name.startswith("mixed")] == list(range(1, 9))
    assert {presence_pattern(case.packed.segments) for case in cases if case.golden} == set(PATTERNS)
    lengths = {case.packed.segments["text"].inputs["input_ids"].shape[1] for case in cases if "text" in case.packed.segments}
    assert len(lengths) >= 3
    for modality in ("text", "image", "audio"):
        most = max(np.bincount(case.packed.segments[modality].item).max() for case in cases if modality in case.packed.segments)
        assert most >= 3, f"no item has several segments of {modality}"
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


def test_export_model_records_the_measured_parity(exported) -> None:
    parity = load_bundle(exported.bundle).metadata.parity
    assert [p.backend for p in parity] == [
        "ONNX, graph by graph",
        "runtime, from bytes",
        "ONNX, single graph",
        "TorchScript",
    ]
    for p in parity:
        assert p.flips == 0
        assert p.max_difference <= 1e-4
        assert p.items == 8 * (1 + 2 + 8) + (3 + 4 + 5 + 6 + 7 + 3 + 4 + 5) + 36 + 13 + 10
        assert p.decisions == 3 * p.items
        assert (p.variant, p.real_items, p.real_flips) == ("fp32", 10, 0)


def test_backends_agree_on_every_pattern_in_batches_of_every_size(exported) -> None:
    cases = make_cases(exported.inputs, (), sizes=range(1, 9))
    covered = {(presence_pattern(case.packed.segments), len(case.items)) for case in cases}
    assert covered >= {(pattern, size) for pattern in PATTERNS for size in range(1, 9)}
    with torch.no_grad():
        expected = [torch.sigmoid(exported.model(collate(case.packed)).logits_NL).numpy() for case in cases]
    bundle = load_bundle(exported.bundle)
    measured = [
        compare_outputs(backend, run_backend(backend, cases, expected), cases, expected, bundle)
        for backend in load_backends(bundle)
    ]
    assert len(measured) == 4
    assert failures(measured) == []


def test_backends_return_the_evidence_of_the_model(exported) -> None:
    bundle = load_bundle(exported.bundle)
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
    single = open_session(bundle.graph("model")).run(None, input_arrays(packed, bundle.metadata.graphs["model"].inputs))
    with torch.no_grad():
        traced = load_torchscript(bundle.graph("torchscript"))(
            *(torch.from_numpy(a) for a in input_arrays(packed, bundle.metadata.graphs["torchscript"].inputs).values())
        )
    for place, modality in enumerate(("text", "image", "audio")):
        for found in (scores.evidence[modality], single[1 + place], traced[1 + place].numpy()):
            np.testing.assert_allclose(found, evidence[modality], atol=1e-4)


def test_export_model_with_gated_fusion_of_one_modality(make_tiny, taxonomy, tmp_path: Path) -> None:
    model, inputs = make_tiny(GatedFusion(hidden=8), "image")
    to = tmp_path / "bundle"
    export_model(model, inputs, taxonomy, {}, (), to=to, provenance=Provenance("small"))
    bundle = load_bundle(to)
    assert bundle.metadata.modalities == ("image",)
    assert bundle.thresholds == {"scam": 0.5, "promotion": 0.5, "tobacco": 0.5}
    assert not (to / "resolved.yaml").exists()
    assert not (to / "tokenizer").exists()


def test_export_model_writes_nothing_if_a_format_disagrees(
    make_tiny, taxonomy, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vigil_serving.export import onnx_export, torchscript

    model, inputs = make_tiny(MeanFusion(), "text")
    # The graphs are built from a model whose fusion is slightly off; the reference outputs come from the unchanged model.
    monkeypatch.setattr(onnx_export, "fusion_graph", _shifted(onnx_export.fusion_graph, model, 0.01))
    monkeypatch.setattr(torchscript, "save_torchscript", _shifted(torchscript.save_torchscript, model, 0.01))
    before = (bundle_copy / "manifest.json").read_bytes()
    with pytest.raises(ParityError) as caught:
        export_model(model, inputs, taxonomy, {}, (), to=bundle_copy, provenance=Provenance("wrong"))
    *lines, why, last = str(caught.value).splitlines()
    assert why == "the exported model would not decide as the trained model does"
    assert len(lines) == 4, "one line for each backend"
    assert last.endswith("no bundle was written")
    assert "TorchScript: probabilities differ by up to" in str(caught.value)
    assert (bundle_copy / "manifest.json").read_bytes() == before, "the older bundle stays"
    siblings = {path.name for path in bundle_copy.parent.iterdir()}
    assert siblings == {bundle_copy.name, f".{bundle_copy.name}.export"}, "only the finished steps remain"


def _shifted(function, model, by: float):
    """Return ``function``, during which the model's logits are shifted."""
    right = model.fuse

    def wrapped(*arguments, **options):
        def fuse(tokens, segments, rows):
            prediction = right(tokens, segments, rows)
            return prediction._replace(logits_NL=prediction.logits_NL + by)

        object.__setattr__(model, "fuse", fuse)
        try:
            return function(*arguments, **options)
        finally:
            object.__delattr__(model, "fuse")

    return wrapped


def test_export_model_refuses_other_labels_and_occupied_folders(exported, tmp_path: Path) -> None:
    arguments = (exported.model, exported.inputs, exported.taxonomy)
    with pytest.raises(UserError, match="thresholds name nonsense"):
        export_model(*arguments, {"nonsense": 0.5}, (), to=tmp_path / "b", provenance=Provenance("x"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="other files in it"):
        export_model(*arguments, {}, (), to=tmp_path / "mine", provenance=Provenance("x"))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_export_model_writes_no_real_item(exported) -> None:
    golden = [json.loads(line) for line in (exported.bundle / "golden" / "items.jsonl").read_text().splitlines()]
    ids = {item["id"] for line in golden for item in line["items"]}
    assert len(golden) == 9 + 13
    assert not ids & {f"made-{1000 + n}" for n in range(10)}
