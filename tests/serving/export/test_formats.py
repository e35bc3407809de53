"""Every form that can be asked for is made, decides as the model does, and is refused where it does not."""

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
from vigil_modeling.specs import MeanFusion
from vigil_serving.bundle import load as bundles
from vigil_serving.bundle import manifest
from vigil_serving.export import quantization_selection
from vigil_serving.export.float16 import float16, front_end
from vigil_serving.export.merge_adapters import merged
from vigil_serving.export.modules import example_inputs
from vigil_serving.export.onnx_export import encoder_graph
from vigil_serving.export.pipeline import export
from vigil_serving.parity import golden
from vigil_serving.parity.cases import make_item
from vigil_serving.parity.compare import ParityError
from vigil_serving.parity.verify import verify
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.specs import ExportSpec, Int8Spec

LOOSE = Int8Spec(max_ap_loss=1, max_flips=1, max_difference=1, enough=2)
EVERY = ("onnx", "onnx-single", "torchscript", "torch-export", "fp16", "bf16", "int8")
KINDS = (["text", "audio"], ["image"], ["text", "image", "audio"], ["audio"])


@pytest.fixture(scope="module")
def real(exported):
    """Items with targets, as a validation split has them."""
    return [
        replace(make_item(KINDS[n % 4], 2000 + n, exported.inputs), targets={"scam": float(n % 3 == 0), "promotion": None})
        for n in range(24)
    ]


@pytest.fixture(scope="module")
def every(exported, real, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in every form; whatever is quantised counts as faster, which tiny encoders are not."""
    to = tmp_path_factory.mktemp("formats") / "bundle"
    spec = ExportSpec(formats=EVERY, int8=LOOSE)
    parts = (exported.model, exported.inputs, exported.taxonomy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization_selection, "WORTH", 1e9)
        # No threshold is near any probability: bfloat16 has 8 bits.
        export(
            *parts,
            dict.fromkeys(exported.thresholds, 0.99),
            real[:8],
            to=to,
            facts={"name": "every"},
            spec=spec,
            measure=real[8:16],
            calibration=real[16:],
        )
    return to


def test_every_form_is_in_the_bundle_and_verified(every: Path) -> None:
    bundle = bundles.read(every)
    assert set(bundle.signature.variants) == {"fp32", "fp16", "int8"}
    assert [(p.form, p.variant) for p in bundle.signature.parity] == [
        ("ONNX, graph by graph", "fp32"),
        ("runtime, from bytes", "fp32"),
        ("ONNX, single graph", "fp32"),
        ("ONNX, fp16", "fp16"),
        ("ONNX, int8", "int8"),
        ("TorchScript", "fp32"),
        ("torch.export", "fp32"),
        ("torch.export, bf16", "bf16"),
    ]
    by_form = {p.form: p for p in bundle.signature.parity}
    assert by_form["torch.export"].max_difference <= 1e-5
    assert 0 < by_form["ONNX, fp16"].max_difference <= 1e-2
    assert by_form["ONNX, int8"].max_difference > 0
    assert by_form["ONNX, int8"].real_items == 16
    assert by_form["ONNX, int8"].ap_change["scam"] is not None
    assert by_form["ONNX, int8"].ap_change["promotion"] is None
    for chosen in ("text", "image", "audio"):
        tried = [c for c in bundle.signature.candidates if c.modality == chosen]
        assert sum(c.chosen for c in tried) == 1
        assert tried[0].name == "fp32"
    again = verify(every)
    assert [p.form for p in again.parity] == [p.form for p in bundle.signature.parity]
    assert all(p.max_difference <= 1e-5 for p in again.parity), "each variant is held against what it gave at the export"


def test_the_runtime_runs_each_variant(every: Path) -> None:
    cases, expected = golden.read(every)
    for variant in ("fp32", "fp16", "int8"):
        scorer = Scorer(every, variant=variant)
        due = golden.read_given(every, cases, variant) or expected
        for case, due_NL in zip(cases, due, strict=True):
            np.testing.assert_allclose(scorer.raw_probabilities(case.items), due_NL, atol=0.02)
    with pytest.raises(UserError, match="has no variant int4; it has fp32, fp16, int8"):
        Scorer(every, variant="int4")


def test_quantised_files_are_smaller_and_hold_8_bit_weights(every: Path) -> None:
    bundle = bundles.read(every)
    for modality, file in bundle.encoders("int8").items():
        kinds = {tensor.data_type for tensor in onnx.load(file).graph.initializer}
        assert onnx.TensorProto.INT8 in kinds, modality
    for modality, file in bundle.encoders("fp16").items():
        assert onnx.TensorProto.FLOAT16 in {t.data_type for t in onnx.load(file).graph.initializer}, modality


def test_a_program_of_torch_export_needs_torch_alone(every: Path) -> None:
    code = """
import sys, torch
folder = sys.argv[1]
encode = torch.export.load(f"{folder}/text.pt2").module()
fuse = torch.export.load(f"{folder}/fusion.pt2").module()
with torch.no_grad():
    for n, length in ((1, 3), (5, 9)):
        ids = torch.randint(0, 100, (n, length))
        tokens = encode(ids, torch.ones_like(ids))
        none = torch.zeros(0, *tokens.shape[1:]), torch.zeros(0, dtype=torch.int64)
        many = torch.zeros(0, 1, tokens.shape[2]), torch.zeros(0, dtype=torch.int64)
        shapes = eval(sys.argv[2])
        absent = [(torch.zeros(0, *shape), torch.zeros(0, dtype=torch.int64)) for shape in shapes]
        given = [torch.arange(n + 2), tokens, torch.arange(n), *(part for pair in absent for part in pair)]
        print(tuple(fuse(*given)[0].shape))
assert not any(name.startswith("vigil") for name in sys.modules)
"""
    taken = bundles.read(every).signature.graphs["torch_export.fusion"].inputs
    shapes = [tuple(taken[f"{m}_tokens"].shape[1:]) for m in ("image", "audio")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(every / "torch_export"), repr(shapes)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n")[:2] == ["(3, 3)", "(7, 3)"]


def test_an_archive_holds_its_own_weights_alone(every: Path, exported) -> None:
    sizes = {path.name: path.stat().st_size for path in (every / "torch_export").iterdir()}
    weights = 4 * sum(p.numel() for p in exported.model.encoders["image"].parameters())
    assert weights < sizes["image.pt2"] < weights + 400_000
    assert sizes["image.bf16.pt2"] < sizes["image.pt2"]


def test_a_float_form_that_flips_a_decision_is_no_bundle(exported, make_tiny, taxonomy, tmp_path: Path) -> None:
    model, inputs = make_tiny(MeanFusion(), "text")
    with torch.no_grad():
        model.heads.load_state_dict({k: 4 * v for k, v in model.heads.state_dict().items()})
    items = [make_item(["text"], n, inputs) for n in range(40)]
    from vigil_data.decode import Decoder
    from vigil_data.loading.batch import collate
    from vigil_data.loading.packing import pack

    with torch.no_grad():
        logits = model(collate(pack([Decoder(inputs, ()).decode(item) for item in items]))).logits_NL
    # A threshold between the two probabilities that are nearest to each other: the least error turns one of them.
    ranked = torch.sigmoid(logits[:, 0]).sort().values
    place = int((ranked[1:] - ranked[:-1]).where(ranked[1:] - ranked[:-1] > 1e-5, torch.tensor(1.0)).argmin())
    thresholds = {"scam": float(ranked[place] + ranked[place + 1]) / 2}
    arguments = (model, inputs, taxonomy, thresholds, items)
    with pytest.raises(ParityError, match=r"torch\.export, bf16: .*decisions differ"):
        export(*arguments, to=tmp_path / "b", facts={"name": "x"}, spec=ExportSpec(formats=("bf16",)))
    assert not (tmp_path / "b").exists()
    export(*arguments, to=tmp_path / "b", facts={"name": "x"}, spec=ExportSpec(formats=("torch-export",)))
    assert not (tmp_path / "b" / "torchscript").exists(), "only what was asked for"


@pytest.mark.parametrize("reason", ["slower", "worse"])
def test_int8_out_of_tolerance_is_left_out_or_an_error(make_tiny, taxonomy, tmp_path: Path, monkeypatch, reason: str) -> None:
    model, inputs = make_tiny(MeanFusion(), "text")
    items = [replace(make_item(["text"], n, inputs), targets={"scam": float(n % 2)}) for n in range(24)]
    monkeypatch.setattr(quantization_selection, "WORTH", 0.0 if reason == "slower" else 1e9)
    int8 = LOOSE if reason == "slower" else LOOSE.model_copy(update={"max_difference": 1e-9})
    arguments = (model, inputs, taxonomy, {}, items[:12])
    options = {"to": tmp_path / "b", "facts": {"name": "x"}, "measure": items[12:18], "calibration": items[18:]}
    wanted = "not faster than fp32" if reason == "slower" else "probabilities differ by up to"
    with pytest.raises(ParityError, match=f"int8: no encoder gains by it; .*{wanted}"):
        export(*arguments, spec=ExportSpec(formats=("int8",), int8=int8), **options)
    assert not (tmp_path / "b").exists()
    export(*arguments, spec=ExportSpec(formats=("int8",), int8=int8.model_copy(update={"required": False})), **options)
    signature = bundles.read(tmp_path / "b").signature
    assert set(signature.variants) == {"fp32"}
    assert wanted in signature.left_out["int8"]
    assert wanted in (tmp_path / "b" / manifest.CARD).read_text() or "faster" in wanted
    assert not list((tmp_path / "b").rglob("*int8*"))
    assert len(verify(tmp_path / "b").parity) == 2


def test_int8_needs_real_items(exported, tmp_path: Path) -> None:
    parts = (exported.model, exported.inputs, exported.taxonomy, {}, ())
    with pytest.raises(UserError, match="chosen by its loss on real examples, and there are none"):
        export(*parts, to=tmp_path / "b", facts={"name": "x"}, spec=ExportSpec(formats=("int8",)))


def test_a_spectrogram_stays_in_float32(exported) -> None:
    graph = onnx.load(exported.bundle / "onnx" / "audio.onnx")
    kept = {node.op_type for node in graph.graph.node if node.name in front_end(graph)}
    assert {"STFT", "Log", "MatMul"} <= kept
    assert "Conv" not in kept
    assert front_end(onnx.load(exported.bundle / "onnx" / "text.onnx")) == set()
    halved = float16(graph)
    narrow = {t.name for t in halved.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    for node in halved.graph.node:
        if node.name in front_end(graph):
            assert not narrow & set(node.input), node.op_type


def test_frozen_statistics_are_folded_into_convolutions(make_tiny) -> None:
    """Batch norm in evaluation mode is a scale and a shift: it disappears in the convolution before it."""
    model, inputs = make_tiny(MeanFusion(), "image")
    norms = [m for m in model.encoders["image"].modules() if isinstance(m, nn.BatchNorm2d)]
    convolutions = [m for m in model.encoders["image"].modules() if isinstance(m, nn.Conv2d)]
    assert len(norms) > 5
    for norm in norms:  # fresh statistics are zeros and ones, of which nothing would be left anyhow
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            nn.init.uniform_(tensor.data, 0.5, 1.5)
    _, arguments, _ = example_inputs(inputs, model.modalities)
    graph = encoder_graph(model, "image", arguments["image"]).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("BatchNormalization") == 0
    assert kinds.count("Conv") == len(convolutions)
    weights = {name for node in graph.node if node.op_type == "Conv" for name in node.input[1:]}
    assert len(weights) == 2 * len(convolutions), "a weight and a bias each, and no statistics"
    assert not {"Identity", "Dropout", "Constant", "Sqrt"} & set(kinds), "nothing is left to fold"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_adapters_are_merged_before_the_export(make_tiny, taxonomy, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from vigil_data.decode import Decoder
    from vigil_data.loading.batch import collate
    from vigil_data.loading.packing import pack

    model, inputs = make_tiny(MeanFusion(), "text")
    assert merged(model) is model, "nothing to merge, nothing copied"
    plain = tmp_path / "plain"
    export(model, inputs, taxonomy, {}, (), to=plain, facts={"name": "plain"}, spec=ExportSpec(formats=("onnx",)))
    encoder = model.encoders["text"]
    encoder.model = peft.get_peft_model(
        encoder.model, peft.LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False)
    )
    model.eval()
    batch = collate(pack([Decoder(inputs, ()).decode(make_item(["text"], n, inputs)) for n in range(4)]))
    with torch.no_grad():
        before = model(batch).logits_NL
        after = merged(model)(batch).logits_NL
        again = model(batch).logits_NL
    assert torch.equal(before, again), "the model itself is left as it is"
    assert torch.allclose(before, after, atol=1e-5)
    to = tmp_path / "adapted"
    export(model, inputs, taxonomy, {}, (), to=to, facts={"name": "adapted"}, spec=ExportSpec(formats=("onnx",)))
    graphs = [onnx.load(folder / "onnx" / "text.onnx").graph for folder in (plain, to)]
    assert [n.op_type for n in graphs[0].node] == [n.op_type for n in graphs[1].node], "no product more than without adapters"
    assert len(graphs[0].initializer) == len(graphs[1].initializer)


@pytest.mark.parametrize("opset", [18, 23])
def test_the_least_and_the_most_opset_run(make_tiny, taxonomy, tmp_path: Path, opset: int) -> None:
    model, inputs = make_tiny(MeanFusion(), "text", "image", "audio")
    to = tmp_path / "b"
    export(model, inputs, taxonomy, {}, (), to=to, facts={"name": "x"}, spec=ExportSpec(formats=("onnx-single",), opset=opset))
    for file in (to / "onnx").iterdir():
        versions = {entry.domain: entry.version for entry in onnx.load(file).opset_import}
        assert versions[""] == opset, file.name
