"""Formats: every one that can be requested is built and decides as the model does, or the export fails."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from vigil_data.errors import UserError
from vigil_modeling.encoders.lora import add_lora
from vigil_modeling.fusion import Experts
from vigil_modeling.specs import Lora, MeanFusion
from vigil_serving.bundle import manifest
from vigil_serving.bundle.load import load_bundle
from vigil_serving.export import quantization_selection
from vigil_serving.export.float16 import convert_to_float16, spectrogram_nodes
from vigil_serving.export.modules import example_inputs, inference_network
from vigil_serving.export.onnx_export import encoder_graph
from vigil_serving.export.pipeline import export_model
from vigil_serving.export.publish import Provenance
from vigil_serving.parity.cases import make_item
from vigil_serving.parity.compare import ParityError
from vigil_serving.parity.golden import read_golden
from vigil_serving.parity.verify import verify_bundle
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.specs import ExportSpec, Int8Spec

LOOSE = Int8Spec(max_ap_loss=1, max_flips=1, max_difference=1, enough=2)
EVERY = ("onnx", "onnx-single", "torchscript", "torch-export", "fp16", "bf16", "int8")
KINDS = (["text", "audio"], ["image"], ["text", "image", "audio"], ["audio"])


@pytest.fixture(scope="module")
def real(exported):
    """Items with targets, as a validation split has them."""
    return [
        replace(
            make_item(KINDS[n % 4], 2000 + n, exported.inputs, placed=True),
            targets={"scam": float(n % 3 == 0), "promotion": None},
        )
        for n in range(24)
    ]


@pytest.fixture(scope="module")
def every(exported, real, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in every format; quantized encoders count as faster, which tiny ones are not."""
    to = tmp_path_factory.mktemp("formats") / "bundle"
    spec = ExportSpec(formats=EVERY, int8=LOOSE)
    parts = (exported.model, exported.inputs, exported.taxonomy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization_selection, "MAX_TIME_SHARE", 1e9)
        # No threshold is near any probability, since bfloat16 has 8 bits.
        export_model(
            *parts,
            dict.fromkeys(exported.thresholds, 0.99),
            real[:8],
            to=to,
            provenance=Provenance("every"),
            spec=spec,
            measure=real[8:16],
            calibration=real[16:],
        )
    return to


def test_export_model_writes_every_format_and_verify_accepts_it(every: Path) -> None:
    bundle = load_bundle(every)
    assert set(bundle.metadata.variants) == {"fp32", "fp16", "int8"}
    assert [(p.backend, p.variant) for p in bundle.metadata.parity] == [
        ("ONNX, graph by graph", "fp32"),
        ("runtime, from bytes", "fp32"),
        ("ONNX, single graph", "fp32"),
        ("ONNX, fp16", "fp16"),
        ("ONNX, int8", "int8"),
        ("TorchScript", "fp32"),
        ("torch.export", "fp32"),
        ("torch.export, bf16", "bf16"),
    ]
    by_backend = {p.backend: p for p in bundle.metadata.parity}
    assert by_backend["torch.export"].max_difference <= 1e-5
    assert 0 < by_backend["ONNX, fp16"].max_difference <= 1e-2
    assert by_backend["ONNX, int8"].max_difference > 0
    assert by_backend["ONNX, int8"].real_items == 16
    assert by_backend["ONNX, int8"].ap_change["scam"] is not None
    assert by_backend["ONNX, int8"].ap_change["promotion"] is None
    for chosen in ("text", "image", "audio"):
        tried = [c for c in bundle.metadata.candidates if c.modality == chosen]
        assert sum(c.chosen for c in tried) == 1
        assert tried[0].name == "fp32"
    for measured in (*bundle.metadata.parity, *(c.parity for c in bundle.metadata.candidates if c.parity)):
        invariance = measured.invariance
        assert (invariance.flips, invariance.action_flips, invariance.items > 0) == (0, 0, True), measured.backend
        assert invariance.max_difference <= (1e-3 if measured.variant == "bf16" else 1e-5), measured.backend
    again = verify_bundle(every)
    assert [p.backend for p in again.parity] == [p.backend for p in bundle.metadata.parity]
    assert all(p.max_difference <= 1e-5 for p in again.parity), "each variant is compared with its outputs at the export"


def test_scorer_runs_each_variant(every: Path) -> None:
    golden = read_golden(every)
    for variant in ("fp32", "fp16", "int8"):
        scorer = Scorer(every, variant=variant)
        for case, expected_NL in zip(golden.cases, golden.expected(variant), strict=True):
            np.testing.assert_allclose(scorer.raw_probabilities(case.items), expected_NL, atol=0.02)
    with pytest.raises(UserError, match="has no variant int4; it has fp32, fp16, int8"):
        Scorer(every, variant="int4")


def test_quantize_writes_8_bit_weights_and_float16_16_bit_ones(every: Path) -> None:
    bundle = load_bundle(every)
    for modality, file in bundle.encoders("int8").items():
        kinds = {tensor.data_type for tensor in onnx.load(file).graph.initializer}
        assert onnx.TensorProto.INT8 in kinds, modality
    for modality, file in bundle.encoders("fp16").items():
        assert onnx.TensorProto.FLOAT16 in {t.data_type for t in onnx.load(file).graph.initializer}, modality


def test_torch_export_program_needs_only_torch(every: Path) -> None:
    code = """
import sys, torch
folder = sys.argv[1]
encode = torch.export.load(f"{folder}/text.pt2").module()
fuse = torch.export.load(f"{folder}/fusion.pt2").module()
with torch.no_grad():
    for n, length in ((1, 3), (5, 9)):
        ids = torch.randint(0, 100, (n, length))
        tokens = encode(ids, torch.ones_like(ids))
        known = {"rows": torch.arange(n + 2), "text_tokens": tokens, "text_item": torch.arange(n)}
        known |= {"text_role": torch.ones(n, dtype=torch.int64), "text_time": torch.full((n, 2), -1.0)}
        given = [known.get(k, torch.zeros(0, *s, dtype=getattr(torch, t))) for k, t, s in eval(sys.argv[2])]
        print(tuple(fuse(*given)[0].shape))
assert not any(name.startswith("vigil") for name in sys.modules)
"""
    taken = load_bundle(every).metadata.graphs["torch_export.fusion"].inputs
    assert [*taken][1:5] == ["text_tokens", "text_item", "text_role", "text_time"]
    inputs = [(name, spec.dtype, spec.shape[1:]) for name, spec in taken.items()]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(every / "torch_export"), repr(inputs)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n")[:2] == ["(3, 3)", "(7, 3)"]


def test_torch_export_program_holds_only_its_own_weights(every: Path, exported) -> None:
    sizes = {path.name: path.stat().st_size for path in (every / "torch_export").iterdir()}
    weights = 4 * sum(p.numel() for p in exported.model.encoders["image"].parameters())
    assert weights < sizes["image.pt2"] < weights + 400_000
    assert sizes["image.bf16.pt2"] < sizes["image.pt2"]


def test_gate_refuses_a_float_format_that_flips_a_decision(exported, make_tiny, taxonomy, tmp_path: Path) -> None:
    model, inputs = make_tiny(MeanFusion(), "text")
    with torch.no_grad():
        model.heads.load_state_dict({k: 4 * v for k, v in model.heads.state_dict().items()})
    items = [make_item(["text"], n, inputs) for n in range(40)]
    from vigil_data.decode import Decoder
    from vigil_data.loading.batch import collate
    from vigil_data.loading.packing import pack

    with torch.no_grad():
        logits = model(collate(pack([Decoder(inputs, ()).decode(item) for item in items]))).logits_NL
    # A threshold between the two closest probabilities: the smallest error flips one of them.
    ranked = torch.sigmoid(logits[:, 0]).sort().values
    place = int((ranked[1:] - ranked[:-1]).where(ranked[1:] - ranked[:-1] > 1e-5, torch.tensor(1.0)).argmin())
    thresholds = {"scam": float(ranked[place] + ranked[place + 1]) / 2}
    arguments = (model, inputs, taxonomy, thresholds, items)
    with pytest.raises(ParityError, match=r"torch\.export, bf16: .*decisions differ"):
        export_model(*arguments, to=tmp_path / "b", provenance=Provenance("x"), spec=ExportSpec(formats=("bf16",)))
    assert not (tmp_path / "b").exists()
    export_model(*arguments, to=tmp_path / "b", provenance=Provenance("x"), spec=ExportSpec(formats=("torch-export",)))
    assert not (tmp_path / "b" / "torchscript").exists(), "only what was requested"


@pytest.mark.parametrize("reason", ["slower", "worse"])
def test_gate_leaves_int8_out_of_tolerance_out_or_fails(make_tiny, taxonomy, tmp_path: Path, monkeypatch, reason: str) -> None:
    model, inputs = make_tiny(MeanFusion(), "text")
    items = [replace(make_item(["text"], n, inputs), targets={"scam": float(n % 2)}) for n in range(24)]
    monkeypatch.setattr(quantization_selection, "MAX_TIME_SHARE", 0.0 if reason == "slower" else 1e9)
    int8 = LOOSE if reason == "slower" else LOOSE.model_copy(update={"max_difference": 1e-9})
    arguments = (model, inputs, taxonomy, {}, items[:12])
    options = {"to": tmp_path / "b", "provenance": Provenance("x"), "measure": items[12:18], "calibration": items[18:]}
    wanted = "not faster than fp32" if reason == "slower" else "probabilities differ by up to"
    with pytest.raises(ParityError, match=f"int8: no encoder gains by it; .*{wanted}.*leave int8 out") as caught:
        export_model(*arguments, spec=ExportSpec(formats=("int8",), int8=int8), **options)
    assert str(caught.value).endswith("\nno bundle was written")
    assert "would not decide" not in str(caught.value)  # the float formats do
    assert not (tmp_path / "b").exists()
    export_model(*arguments, spec=ExportSpec(formats=("int8",), int8=int8.model_copy(update={"required": False})), **options)
    metadata = load_bundle(tmp_path / "b").metadata
    assert set(metadata.variants) == {"fp32"}
    assert wanted in metadata.left_out["int8"]
    assert wanted in (tmp_path / "b" / manifest.MODEL_CARD).read_text() or "faster" in wanted
    assert not list((tmp_path / "b").rglob("*int8*"))
    assert len(verify_bundle(tmp_path / "b").parity) == 2


def test_export_model_refuses_int8_without_real_items(exported, tmp_path: Path) -> None:
    parts = (exported.model, exported.inputs, exported.taxonomy, {}, ())
    with pytest.raises(UserError, match="chosen by its loss on real examples, and there are none"):
        export_model(*parts, to=tmp_path / "b", provenance=Provenance("x"), spec=ExportSpec(formats=("int8",)))


def test_convert_to_float16_keeps_a_spectrogram_in_float32(exported) -> None:
    graph = onnx.load(exported.bundle / "onnx" / "audio.onnx")
    kept = {node.op_type for node in graph.graph.node if node.name in spectrogram_nodes(graph)}
    assert {"STFT", "Log", "MatMul"} <= kept
    assert "Conv" not in kept
    assert spectrogram_nodes(onnx.load(exported.bundle / "onnx" / "text.onnx")) == set()
    converted = convert_to_float16(exported.bundle / "onnx" / "audio.onnx")
    narrow = {t.name for t in converted.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    for node in converted.graph.node:
        if node.name in spectrogram_nodes(graph):
            assert not narrow & set(node.input), node.op_type


def test_encoder_graph_folds_batch_norm_into_convolutions(make_tiny) -> None:
    """Batch norm in evaluation mode is a scale and a shift, which the convolution before it absorbs."""
    model, inputs = make_tiny(MeanFusion(), "image")
    norms = [m for m in model.encoders["image"].modules() if isinstance(m, nn.BatchNorm2d)]
    convolutions = [m for m in model.encoders["image"].modules() if isinstance(m, nn.Conv2d)]
    assert len(norms) > 5
    for norm in norms:  # initial statistics are zeros and ones, which any exporter folds
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            nn.init.uniform_(tensor.data, 0.5, 1.5)
    graph = encoder_graph(model, "image", example_inputs(model, inputs)).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("BatchNormalization") == 0
    assert kinds.count("Conv") == len(convolutions)
    weights = {name for node in graph.node if node.op_type == "Conv" for name in node.input[1:]}
    assert len(weights) == 2 * len(convolutions), "a weight and a bias each, and no statistics"
    assert not {"Identity", "Dropout", "Constant", "Sqrt"} & set(kinds), "everything is folded"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_inference_network_merges_adapters(make_tiny, taxonomy, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from vigil_data.decode import Decoder
    from vigil_data.loading.batch import collate
    from vigil_data.loading.packing import pack

    model, inputs = make_tiny(MeanFusion(), "text")
    assert inference_network(model) is model, "without adapters nothing is copied"
    plain = tmp_path / "plain"
    export_model(model, inputs, taxonomy, {}, (), to=plain, provenance=Provenance("plain"), spec=ExportSpec(formats=("onnx",)))
    add_lora(model.encoder("text"), Lora(rank=4, targets=("query", "value")), "model.encoders.text")
    for name, weights in model.named_parameters():
        if "lora_B" in name:  # Zero at first, which would change nothing.
            nn.init.normal_(weights)
    model.eval()
    batch = collate(pack([Decoder(inputs, ()).decode(make_item(["text"], n, inputs)) for n in range(4)]))
    with torch.no_grad():
        before = model(batch).logits_NL
        after = inference_network(model)(batch).logits_NL
        again = model(batch).logits_NL
    assert torch.equal(before, again), "the model itself is unchanged"
    assert torch.allclose(before, after, atol=1e-5)
    to = tmp_path / "adapted"
    export_model(model, inputs, taxonomy, {}, (), to=to, provenance=Provenance("adapted"), spec=ExportSpec(formats=("onnx",)))
    graphs = [onnx.load(folder / "onnx" / "text.onnx").graph for folder in (plain, to)]
    assert [n.op_type for n in graphs[0].node] == [n.op_type for n in graphs[1].node], "no more products than without adapters"
    assert len(graphs[0].initializer) == len(graphs[1].initializer)


def test_inference_network_has_no_auxiliary_heads(make_tiny, taxonomy) -> None:
    model, _ = make_tiny(MeanFusion(), "text", "image")
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.experts = Experts(model.modalities, taxonomy, model.width, 0.0)
    found = inference_network(model)
    assert found is not model
    assert found.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())
    assert model.has_auxiliary_heads, "the model itself is unchanged"


@pytest.mark.parametrize("opset", [18, 23])
def test_export_model_with_the_lowest_and_highest_opset(make_tiny, taxonomy, tmp_path: Path, opset: int) -> None:
    model, inputs = make_tiny(MeanFusion(), "text", "image", "audio")
    to = tmp_path / "b"
    export_model(
        model, inputs, taxonomy, {}, (), to=to, provenance=Provenance("x"), spec=ExportSpec(formats=("onnx-single",), opset=opset)
    )
    for file in (to / "onnx").iterdir():
        versions = {entry.domain: entry.version for entry in onnx.load(file).opset_import}
        assert versions[""] == opset, file.name
